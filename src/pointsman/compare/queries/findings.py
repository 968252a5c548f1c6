"""What a comparison on a log found, as results.json: everything is measured on test queries.

Legend: S settings, N queries, M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pointsman.compare import results as written
from pointsman.compare.metric import QUALITY
from pointsman.compare.queries.breakdown import by_group, examples
from pointsman.compare.queries.choice import CHANCE, Mixture, mixed
from pointsman.compare.queries.metrics import Array, Bootstrap, corners, height_at
from pointsman.compare.queries.offers import KINDS, Offer
from pointsman.compare.queries.verdict import Verdict
from pointsman.compare.request import Request
from pointsman.frontier import Frontier, Outcomes, Pick, Point, oracle
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
        prediction: of the test queries.
        outcomes: of every setting on validation, calibration and test.
        seconds: that fitting took.
    """

    offer: Offer
    settings: tuple[Setting, ...]
    prediction: Prediction
    outcomes: Mapping[str, Outcomes]
    seconds: float

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
    """

    name: str
    parts: Mapping[str, Log]
    reference: int
    measured: Sequence[Measured]
    by_chance: Sequence[Mixture]
    verdict: Verdict
    pick: Pick

    @property
    def alone(self) -> Measured:
        """The models alone."""
        return self.measured[0]

    @property
    def test(self) -> Log:
        """The test queries."""
        return self.parts["test"]

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

    def results(self, request: Request, shown: int) -> dict[str, Any]:
        """The results as plain JSON values, schema version 1 with the key `pool`.

        Args:
            request: what was asked for.
            shown: how many example queries of either kind.
        """
        log, alone = self.test, self.alone.outcomes["test"]
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
            pick=self.pick,
            used={"shares": self._shares()},
            trained=[],
        ) | {"pool": self._pool(shown)}

    def _charted(self) -> list[Measured]:
        """The strategies drawn: of routers that decide before the call, the best on validation."""
        heights = {id(each): self._height(each) for each in self.measured}
        before = [each for each in self.measured if each.offer.kind == "before"]
        best = sorted(before, key=lambda each: -heights[id(each)])[:ROUTERS_SHOWN]
        later: list[Measured] = []
        for kind in ("after", "both"):
            found = [each for each in self.measured if each.offer.kind == kind]
            later += sorted(found, key=lambda each: -heights[id(each)])[:1]
        simple = [each for each in self.measured if each.offer.kind == "trivial"]
        drawn = [self.alone, *simple, *best, *later]
        if self.picked is not None and all(each is not self.picked for each in drawn):
            drawn.append(self.picked)
        return drawn

    def _height(self, each: Measured) -> float:
        """Mean height of a strategy's hull above the models' own, on validation."""
        found, alone = each.outcomes["validation"], self.alone.outcomes["validation"]
        cost, quality = found.cost.mean(axis=1), found.quality.mean(axis=1)
        hull = corners(cost, quality)
        chance = height_at(cost[hull], alone.cost.mean(axis=1), alone.quality.mean(axis=1))
        return float(np.mean(quality[hull] - chance))

    def _front(self, each: Measured) -> Frontier:
        title = "Models alone" if each.way == ALONE else each.offer.strategy.title
        return Frontier.from_outcomes(title, each.outcomes["test"])

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
            "strategies": self._strategies(),
            "groups": by_group(self.test, self.pick_outcomes(), self.reference, answered),
            "examples": {}
            if expected is None or self.picked is self.alone or not shown
            else examples(self.test, expected, answered, self.reference, shown),
            "reference": reference,
        }

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
        alone = self.alone.outcomes["test"]
        bootstrap = Bootstrap(alone, self.reference)
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
