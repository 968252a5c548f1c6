"""A policy: everything that serving needs, from a query to the model that answers, in one file.

It holds the encoder, the fitted strategies, the corners of the hull of quality and cost that were
found on the validation part, and named points between them. The point is chosen for each request;
nothing is fitted again.

Legend: M models.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import random
from typing import Any, Self

import numpy as np

from pointsman.errors import InputError, PointsmanError, PolicyError
from pointsman.frontier.certify import Pick
from pointsman.frontier.points import Knob, Outcomes
from pointsman.pool import features as encoders
from pointsman.pool import policy_file, strategies
from pointsman.pool.decision import Decision, OperatingPoint
from pointsman.pool.features.features import Features
from pointsman.pool.policy_points import (
    Corner,
    between,
    check,
    corner_back,
    corner_plain,
    expectations,
    found_points,
    point_back,
    point_plain,
)
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, inside, nested
from pointsman.pool.strategies.keeping import part_back, part_state
from pointsman.pool.strategies.strategy import Setting, Strategy

__all__ = ["Corner", "Decision", "OperatingPoint", "PoolPolicy", "expectations"]


@dataclass(frozen=True, eq=False)
class PoolPolicy:
    """Something fitted on a log that routes queries among its models.

    Args:
        models: the M names, in the order of the log's columns.
        unit: of every cost, such as "US$".
        encoder: fitted.
        strategies: fitted, by their names.
        points: corners of the hull, by ascending cost and quality.
        named: "certified", "cheap", "best", "reference", and any others.
        reference: the model whose quality is to be kept.
        certificate: as of `Certificate.to_dict`; empty: nothing was tested.
        recommendation: in words, what the run found best to serve, and why.
        expected: what was measured on the calibration part, for an alarm to watch; see
            `expectations`.

    Raises:
        PolicyError: parts that do not fit one another.
    """

    models: tuple[str, ...]
    unit: str
    encoder: Any
    strategies: Mapping[str, Strategy]
    points: tuple[Corner, ...]
    named: Mapping[str, OperatingPoint]
    reference: str
    certificate: Mapping[str, Any] = field(default_factory=dict)
    recommendation: str = ""
    expected: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.models, self.strategies, self.points, self.named, self.reference)

    @classmethod
    def make(
        cls,
        *,
        encoder: Any,
        models: Sequence[str],
        strategies: Sequence[tuple[Strategy, Sequence[Setting]]],
        validation: Outcomes,
        reference: str,
        certified: Pick | Mapping[Knob, float] | None = None,
        certificate: Mapping[str, Any] | None = None,
        recommendation: str = "",
        expected: Mapping[str, Any] | None = None,
    ) -> Self:
        """A policy from what a run on a log found.

        Args:
            encoder: fitted.
            models: names, in the order of the log's columns.
            strategies: each fitted strategy with its settings; one of them is `Single`, to whose
                setting for the reference everything can fall back.
            validation: outcomes of the settings on the validation part, knobs "name: knob" as
                `strategies.strategy.outcomes` writes them. Corners are found among these only.
            reference: the model whose quality is to be kept.
            certified: the pick, or shares of knobs (see `mixing.mixture`) whose mixture was
                certified. None, or a pick that is not certified: the point "certified" is the
                reference alone.
            certificate: of that mixture; with a pick it is the pick's own.
            recommendation: in words.
            expected: see `expectations`.

        Raises:
            InputError: a knob that no strategy has, or no `Single`.
            PolicyError: parts that do not fit one another.
        """
        by_name = {strategy.name: strategy for strategy, _ in strategies}
        if len(by_name) < len(strategies):
            names = ", ".join(strategy.name for strategy, _ in strategies)
            raise PolicyError(f"strategies must have different names, got {names}")
        if isinstance(certified, Pick):
            certificate = certified.certificate.to_dict()
            certified = {certified.knob: 1.0} if certified.certificate.certified else None
        corners, named = found_points(strategies, validation, reference, certified)
        used = {corner.strategy for corner in corners}
        used |= {share.strategy for each in named.values() for share in each.mix}
        return cls(
            models=tuple(models),
            unit=validation.unit,
            encoder=encoder,
            strategies={name: part for name, part in by_name.items() if name in used},
            points=corners,
            named=named,
            reference=reference,
            certificate=dict(certificate or {}),
            recommendation=recommendation,
            expected=dict(expected or {}),
        )

    def point(self, name: str | float) -> OperatingPoint:
        """An operating point by its name.

        Args:
            name: one of `named`; a share in [0, 1] of the way from the cost of "cheap" to that of
                "best"; "cost=0.002", in the policy's unit per query; or "quality=0.81".

        Raises:
            InputError: none of these, or out of reach.
        """
        if isinstance(name, str) and name in self.named:
            return self.named[name]
        kind, _, text = str(name).rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if kind not in ("", "cost", "quality") or not math.isfinite(value):
            raise InputError(
                f"there is no point {str(name)[:80]!r}: choose {', '.join(self.named)}, a share "
                'from 0 (cheap) to 1 (best), "cost=..." or "quality=..."'
            )
        cheap, best = self.points[0], self.points[-1]
        if kind == "quality":
            return self._at_quality(str(name), value)
        if kind == "" and not 0 <= value <= 1:
            raise InputError(f"a point's share lies between 0 (cheap) and 1 (best), got {value:g}")
        if kind == "cost" and value < cheap.cost:
            raise InputError(
                f"the cheapest point costs {cheap.cost:.6g} {self.unit} per query, {value:g} was "
                "asked for: ask for more"
            )
        cost = value if kind == "cost" else cheap.cost + value * (best.cost - cheap.cost)
        return between(self.points, str(name), self._costs, cost)

    def at_cost(self, cost: float) -> OperatingPoint:
        """The best point that spends `cost` per query on average.

        Below the cheapest point that is the cheapest, above the best the best, which spends less.

        Raises:
            InputError: not a number.
        """
        if math.isnan(cost):
            raise InputError("a cost per query must be a number, got nan")
        return between(self.points, f"cost={cost:.6g}", self._costs, float(cost))

    def decide(
        self,
        query: str,
        *,
        point: str | float | OperatingPoint = "certified",
        task: str | None = None,
        vector: Any = None,
        chance: float | None = None,
    ) -> Decision:
        """Decide one query: whom to ask first, and from then on by `Decision.after`.

        Args:
            query: text.
            point: see `point`.
            task: where it is known.
            vector: (D,) the query's embedding, where the policy was fitted on vectors.
            chance: in [0, 1), picks among the settings that a point mixes; None: drawn here.

        Raises:
            InputError: no such point, a chance out of range, or a vector of the wrong length, where
                none is read, or missing.
        """
        at = point if isinstance(point, OperatingPoint) else self.point(point)
        u = random() if chance is None else chance
        if not 0 <= u < 1:
            raise InputError(f"chance must lie in [0, 1), got {u}")
        seen = self._features(query, task, vector)
        predictions: dict[str, Prediction] = {}
        for share in at.mix:
            if share.strategy not in predictions:
                predictions[share.strategy] = self.strategies[share.strategy].predict(seen)
        return Decision(self.models, self.strategies, at, predictions, u)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the policy to a file *.safetensors, or into a folder; the file that was written.

        Raises:
            PolicyError: a part that cannot be kept, or a place that cannot be written.
        """
        return policy_file.write(Path(path), *self._state())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy from its file, or from the folder that holds it; no code is run.

        Raises:
            PolicyError: it is not there, not whole, changed since it was written, of a newer
                version, or something else than a policy of a pool.
        """
        file = policy_file.place_of(Path(path))
        return cls._restored_from(*policy_file.read(file), str(file))

    def describe(self) -> dict[str, Any]:
        """Plain JSON values for a status page."""
        return {
            "models": list(self.models),
            "unit": self.unit,
            "reference": self.reference,
            "encoder": type(self.encoder).__name__,
            "strategies": {name: part.title for name, part in self.strategies.items()},
            "signals": sorted({part.signal for part in self.strategies.values() if part.signal}),
            "points": {
                name: {"quality": point.quality, "cost": point.cost, "mix": point.words()}
                for name, point in self.named.items()
            },
            "corners": [
                {"knob": f"{c.strategy}: {c.setting.knob}", "quality": c.quality, "cost": c.cost}
                for c in self.points
            ],
            "certificate": dict(self.certificate),
            "recommendation": self.recommendation,
            "expected": dict(self.expected),
        }

    def words(self) -> str:
        """A summary in a few sentences."""
        cheap, best, certified = self.points[0], self.points[-1], self.named["certified"]
        text = (
            f"Routes among {len(self.models)} models ({', '.join(self.models)}), from quality "
            f"{cheap.quality:.4f} at {cheap.cost:.4g} {self.unit} per query to {best.quality:.4f} "
            f"at {best.cost:.4g}. "
        )
        if self.certificate.get("certified"):
            drop, sure = self.certificate["max_drop"], self.certificate["confidence"]
            text += (
                f"At the certified point ({certified.cost:.4g} {self.unit}) it loses at most "
                f"{drop:.2%} of quality against {self.reference}, at {sure:.0%} confidence."
            )
        else:
            text += f"Nothing is certified: the certified point is {certified.words()}."
        return f"{text} {self.recommendation}".strip()

    @cached_property
    def _costs(self) -> list[float]:
        return [corner.cost for corner in self.points]

    def _at_quality(self, name: str, quality: float) -> OperatingPoint:
        if quality > self.points[-1].quality:
            raise InputError(
                f"the best point reaches a quality of {self.points[-1].quality:.6g}, {quality:g} "
                "was asked for: ask for less"
            )
        return between(self.points, name, [corner.quality for corner in self.points], quality)

    def _features(self, query: str, task: str | None, vector: Any) -> Features:
        tasks = None if task is None else [task]
        found: Features
        if vector is None:
            found = self.encoder.encode([query], tasks)
        elif hasattr(self.encoder, "with_vectors"):
            found = self.encoder.with_vectors(np.asarray(vector)[None], [query], tasks)
        else:
            raise InputError(
                "this policy was fitted on the text of the queries and reads no vectors: leave the "
                "vector out"
            )
        return found

    def _state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        kept, arrays = nested({name: part_state(part) for name, part in self.strategies.items()})
        plain, own = nested({"encoder": part_state(self.encoder)})
        body = {
            "models": list(self.models),
            "unit": self.unit,
            "encoder": plain["encoder"],
            "strategies": kept,
            "points": [corner_plain(corner) for corner in self.points],
            "named": {name: point_plain(point) for name, point in self.named.items()},
            "reference": self.reference,
            "certificate": dict(self.certificate),
            "recommendation": self.recommendation,
            "expected": dict(self.expected),
        }
        return body, {**{f"strategies/{name}": a for name, a in arrays.items()}, **own}

    @classmethod
    def _restored_from(cls, body: Mapping[str, Any], arrays: Arrays, source: str) -> Self:
        try:
            return cls._restored(body, arrays)
        except Exception as error:  # what another program wrote can fail in a dozen ways
            what = " ".join(str(error).split()) if isinstance(error, PointsmanError) else ""
            raise PolicyError(
                f"{source}: the parts of the policy do not fit one another "
                f"({what or type(error).__name__}): run compare again"
            ) from error

    @classmethod
    def _restored(cls, body: Mapping[str, Any], arrays: Arrays) -> Self:
        parts = inside("strategies", arrays)
        return cls(
            models=tuple(body["models"]),
            unit=body["unit"],
            encoder=part_back(encoders, body["encoder"], inside("encoder", arrays)),
            strategies={
                name: part_back(strategies, kept, inside(name, parts))
                for name, kept in body["strategies"].items()
            },
            points=tuple(corner_back(kept) for kept in body["points"]),
            named={name: point_back(name, kept) for name, kept in body["named"].items()},
            reference=body["reference"],
            certificate=body["certificate"],
            recommendation=body["recommendation"],
            expected=body["expected"],
        )
