"""What a comparison on a log found, as results.json: everything is measured on test queries.

Legend: S settings, N queries, M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pointsman.compare import results as written
from pointsman.compare.metric import QUALITY
from pointsman.compare.queries.breakdown import by_group, examples
from pointsman.compare.queries.choice import CHANCE, Mixture, mixed
from pointsman.compare.queries.metrics import Array, Bootstrap, advantage
from pointsman.compare.queries.offers import KINDS, Offer
from pointsman.compare.queries.verdict import Verdict
from pointsman.compare.request import Request
from pointsman.frontier import Frontier, Knob, Outcomes, Pick, Point, oracle, pgr
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.strategy import Setting

ROUTERS_SHOWN = 3  # lines of routers on the chart; the table has them all
ALONE, CASCADE = "dense", "cascade"  # names of ways that the chart draws in colours of their own


@dataclass(frozen=True, eq=False)
class Measured:
    """A strategy, fitted and tried.

    Args:
        offer: the strategy and when it decides.
        settings: those found on validation, from the dearest to the cheapest.
        predictions: of the queries of validation, calibration and test.
        outcomes: of every setting on validation, calibration and test.
        seconds: that fitting took.
    """

    offer: Offer
    settings: tuple[Setting, ...]
    predictions: Mapping[str, Prediction]
    outcomes: Mapping[str, Outcomes]
    seconds: float

    @property
    def prediction(self) -> Prediction:
        """Of the test queries."""
        return self.predictions["test"]

    @property
    def way(self) -> str:
        """Its name on the chart."""
        return {"alone": ALONE, "after": CASCADE}.get(self.offer.kind, self.offer.strategy.name)


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that was measured, and what was picked.

    Args:
        name: of the log.
        parts: train, validation, calibration and test.
        reference: column of the model whose quality is to be kept.
        measured: every strategy, the models alone first.
        by_chance: mixtures of models alone, found on validation.
        verdict: whether looking at the query pays.
        pick: the certified setting.
        words: its certificate in words.
    """

    name: str
    parts: Mapping[str, Log]
    reference: int
    measured: Sequence[Measured]
    by_chance: Sequence[Mixture]
    verdict: Verdict
    pick: Pick
    words: str

    @property
    def alone(self) -> Measured:
        """The models alone."""
        return self.measured[0]

    @property
    def test(self) -> Log:
        """The test queries."""
        return self.parts["test"]

    def _by_column(self, part: str) -> Outcomes:
        """The models alone, in the order of the log's columns."""
        name = self.alone.offer.strategy.name
        return self.alone.outcomes[part].choose(f"{name}: {model}" for model in self.test.models)

    @cached_property
    def picked(self) -> Measured | None:
        """The strategy of the pick; None: a mixture by chance."""
        name = str(self.pick.knob).split(": ", 1)[0]
        found = [each for each in self.measured if each.offer.strategy.name == name]
        return found[0] if found else None

    @cached_property
    def chance(self) -> Outcomes | None:
        """Mixtures by chance on the test queries."""
        return mixed(self.alone.outcomes["test"], self.by_chance) if self.by_chance else None

    @cached_property
    def best(self) -> Measured:
        """The strategy whose settings lie highest above chance on validation."""
        return max(self.measured[1:], key=self._height)

    def results(self, request: Request, shown: int) -> dict[str, Any]:
        """The results as plain JSON values, schema version 1 with the key `pool`.

        Args:
            request: what was asked for.
            shown: how many example queries of either kind.
        """
        log, alone = self.test, self._by_column("test")
        ladder = [
            Point(name, float(log.quality[:, at].mean()), float(log.cost[:, at].mean()))
            for at, name in sorted(
                enumerate(log.models), key=lambda pair: log.cost[:, pair[0]].mean()
            )
        ]
        reference = next(p for p in ladder if p.knob == log.models[self.reference])
        shared = self._charted()
        fronts = [self._front(each) for each in shared]
        ways = [each.way for each in shared]
        if self.picked is None and self.chance is not None:
            fronts.append(Frontier.from_outcomes("Chance, without a look", self.chance))
            ways.append(CHANCE)
        validated = Frontier.from_outcomes("models", self.alone.outcomes["validation"]).hull()
        corner = {str(point.knob).split(": ", 1)[1] for point in validated.points}
        return written.assemble(
            data={
                "name": self.name,
                "kind": "queries",
                "inputs": {name: len(part) for name, part in self.parts.items()},
                "classes": [],
                "note": log.note,
            },
            request=request,
            metric=QUALITY,
            unit=log.unit,
            ladder=ladder,
            reference=reference,
            fronts=fronts,
            ways=ways,
            random=[point for point in ladder if point.knob in corner],
            oracle=oracle(alone),
            pick=replace(self.pick, knob=self._on_chart(self.pick.knob)),
            words=self.words,
            used={"shares": self._shares()},
            trained=[],
        ) | {"pool": self._pool(shown)}

    def _charted(self) -> list[Measured]:
        """The strategies drawn: of routers that decide before the call, the best on validation."""
        ranked = sorted(self.measured[1:], key=lambda each: -self._height(each))
        best = [each for each in ranked if each.offer.kind == "before"][:ROUTERS_SHOWN]
        later = [each for each in ranked if each.offer.kind == "after"][:1]
        later += [each for each in ranked if each.offer.kind == "both"][:1]
        simple = [each for each in self.measured if each.offer.kind == "trivial"]
        drawn = [self.alone, *simple, *best, *later]
        if self.picked is not None and all(each is not self.picked for each in drawn):
            drawn.append(self.picked)
        return drawn

    def _height(self, each: Measured) -> float:
        """What a strategy's hull gains over chance, on validation."""
        return advantage(each.outcomes["validation"], self.alone.outcomes["validation"])

    def _front(self, each: Measured) -> Frontier:
        title = "Models alone" if each.way == ALONE else each.offer.strategy.title
        found = each.outcomes["test"]
        if each is not self.alone:
            found = found.choose(self._shown(each))
        knobs = tuple(self._on_chart(knob) for knob in found.knobs)
        return Frontier.from_outcomes(title, replace(found, knobs=knobs))

    def _shown(self, each: Measured) -> list[Knob]:
        """Of dozens of settings, those that a policy would mix: the hull's on validation."""
        hull = Frontier.from_outcomes(each.way, each.outcomes["validation"]).hull().points
        shown = {point.knob for point in hull} | {self.pick.knob}
        return [knob for knob in each.outcomes["test"].knobs if knob in shown]

    def _on_chart(self, knob: Knob) -> str:
        """A knob under the name that its strategy has on the chart."""
        name, rest = str(knob).split(": ", 1)
        ways = {each.offer.strategy.name: each.way for each in self.measured}
        return f"{ways.get(name, name)}: {rest}"

    # ── the pick ────────────────────────────────────────────────────────────────────────────────

    def pick_outcomes(self) -> Outcomes:
        """The picked setting on the test queries."""
        found = self.chance if self.picked is None else self.picked.outcomes["test"]
        assert found is not None
        return found.choose([self.pick.knob])

    def answered(self) -> Array:
        """(N,) column of the model that answers each test query under the pick."""
        if self.picked is None:
            return self._by_chance()
        knob = str(self.pick.knob).split(": ", 1)[1]
        setting = next(each for each in self.picked.settings if each.knob == knob)
        strategy = self.picked.offer.strategy
        taken = strategy.take(self.test, self.picked.prediction, setting)
        answered: Array = taken.route.answered_by().numpy()
        return answered

    def _by_chance(self) -> Array:
        mixture = next(each for each in self.by_chance if each.knob == self.pick.knob)
        low, high = (
            self.test.model(str(end).split(": ", 1)[1]) for end in (mixture.low, mixture.high)
        )
        at = self.alone.outcomes["test"]
        found = mixed(at, [mixture])
        same = found.cost[0] == at.cost[at.setting(mixture.high)]
        return np.where(same, high, low)

    def _shares(self) -> dict[str, float]:
        counts = np.bincount(self.answered().astype(int), minlength=len(self.test.models))
        return {
            name: float(count) / len(self.test)
            for name, count in zip(self.test.models, counts, strict=True)
            if count
        }

    # ── what only logs have ─────────────────────────────────────────────────────────────────────

    def _pool(self, shown: int) -> dict[str, Any]:
        answered = self.answered().astype(int).tolist()
        expected = None if self.picked is None else self.picked.prediction
        reference = self.test.models[self.reference]
        return {
            "models": self._models(),
            "verdict": {
                "routable": self.verdict.routable,
                "gain": self.verdict.gain,
                "low": self.verdict.low,
                "strategy": self.verdict.strategy,
                "words": self.verdict.words(self.baseline()),
            },
            "pgr": self._recovered(),
            "strategies": self._strategies(),
            "groups": by_group(self.test, self.pick_outcomes(), self.reference, answered),
            "examples": {}
            if expected is None or self.picked is self.alone or not shown
            else examples(self.test, expected, answered, self.reference, shown),
            "reference": reference,
        }

    def _recovered(self) -> float | None:
        """Of the gap between the cheapest model and the reference, what the pick recovers."""
        weak = float(self.test.quality[:, int(self.test.cost.mean(axis=0).argmin())].mean())
        strong = float(self.test.quality[:, self.reference].mean())
        if not strong > weak:
            return None
        return pgr(float(self.pick_outcomes().quality.mean()), weak=weak, strong=strong)

    def baseline(self) -> str:
        """What is recommended where nothing beats the models alone."""
        return str(self.pick.knob).split(": ", 1)[1] if not self.verdict.routable else ""

    def _models(self) -> list[dict[str, Any]]:
        whole = list(self.parts.values())
        return [
            {
                "name": name,
                "quality": float(self.test.quality[:, at].mean()),
                "cost": float(self.test.cost[:, at].mean()),
                "scored": int(sum((~np.isnan(part.quality[:, at])).sum() for part in whole)),
            }
            for at, name in enumerate(self.test.models)
        ]

    def _strategies(self) -> list[dict[str, Any]]:
        """Every strategy with its figures, and the zero router beside them."""
        bootstrap = Bootstrap(self._by_column("test"), self.reference)
        rows = []
        for each in self.measured:
            found = each.outcomes["test"]
            figures = bootstrap.figures(found, self._calls(each))
            rows.append({
                "name": each.offer.strategy.name,
                "title": "Random mix of the models" if each is self.alone
                else each.offer.strategy.title,
                "kind": each.offer.kind,
                "when": KINDS[each.offer.kind],
                "settings": len(each.settings),
                "seconds": round(each.seconds, 2),
                "figures": {name: figure.to_dict() for name, figure in figures.items()},
            })  # fmt: skip
        return rows

    def _calls(self, each: Measured) -> Array:
        """(S, N) whether each setting asked the reference."""
        rows = []
        for setting in each.settings:
            route = each.offer.strategy.take(self.test, each.prediction, setting).route
            asked = np.zeros(len(self.test))
            asked[route.inputs[route.branches == self.reference].numpy()] = 1.0
            rows.append(asked)
        return np.stack(rows)
