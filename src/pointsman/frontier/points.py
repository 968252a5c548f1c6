"""What settings of a policy reached: outcomes input by input, and the frontier of cost and quality.

Legend: S settings, N inputs. Quality lies in [0, 1] and higher is better; cost is per input, in the
unit that is carried along.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, UnitError, UnreachableError

if TYPE_CHECKING:  # certify imports Outcomes from here
    from pointsman.frontier.bounds import Method
    from pointsman.frontier.certify import Pick

Array = npt.NDArray[np.float64]
Knob = str | float | int


@dataclass(frozen=True)
class Point:
    """One setting of a policy with its mean quality and its mean cost per input."""

    knob: Knob
    quality: float
    cost: float


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What each setting did on one data set, input by input, beside the reference.

    Args:
        knobs: names of the S settings, all different; by convention from the safest (dearest) to
            the cheapest, because that is the order in which `pick` tests them.
        quality: (S, N) in [0, 1], higher is better.
        cost: (S, N), not negative.
        reference_quality: (N,) of the model whose quality is to be kept, on the same inputs.
        reference_cost: (N,)
        unit: of both costs, such as "MFLOPs".

    The arrays are kept as read-only float64.

    Raises:
        InputError: shapes that do not match, no setting, no input, equal knobs, a number that is
            not finite, a quality outside [0, 1], or a negative cost.
    """

    knobs: tuple[Knob, ...]
    quality: Array
    cost: Array
    reference_quality: Array
    reference_cost: Array
    unit: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", tuple(self.knobs))
        _check_knobs(self.knobs)
        for name in ("quality", "cost", "reference_quality", "reference_cost"):
            object.__setattr__(self, name, _frozen(getattr(self, name), name))
        if self.quality.ndim != 2 or self.quality.size == 0:
            raise InputError(
                f"quality must be (settings, inputs) with at least one of each, got shape "
                f"{self.quality.shape}: stack one row per setting"
            )
        settings, inputs = self.quality.shape
        shapes = {
            "knobs": ((len(self.knobs),), (settings,)),
            "cost": (self.cost.shape, (settings, inputs)),
            "reference_quality": (self.reference_quality.shape, (inputs,)),
            "reference_cost": (self.reference_cost.shape, (inputs,)),
        }
        for name, (found, expected) in shapes.items():
            if found != expected:
                raise InputError(
                    f"{name} must have shape {expected} to match quality {self.quality.shape}, "
                    f"got {found}: give one row per setting and one column per input"
                )
        for name in ("quality", "reference_quality"):
            _check_range(getattr(self, name), name, high=1.0)
        for name in ("cost", "reference_cost"):
            _check_range(getattr(self, name), name, high=np.inf)

    def __len__(self) -> int:
        """Number of inputs N."""
        return int(self.reference_quality.shape[0])

    def drops(self) -> Array:
        """(S, N) quality lost against the reference, in [-1, 1]; negative where the setting won."""
        return self.reference_quality - self.quality

    def setting(self, knob: Knob) -> int:
        """Row of the setting with this knob.

        Raises:
            InputError: there is no such setting.
        """
        if knob not in self.knobs:
            raise InputError(
                f"no setting has the knob {knob!r}: the {len(self.knobs)} knobs are "
                f"{_listed(self.knobs)}"
            )
        return self.knobs.index(knob)

    def take(self, rows: npt.ArrayLike) -> "Outcomes":
        """The same settings on some inputs only: indices or a mask over the N inputs."""
        rows_ = np.asarray(rows)
        return replace(
            self,
            quality=self.quality[:, rows_],
            cost=self.cost[:, rows_],
            reference_quality=self.reference_quality[rows_],
            reference_cost=self.reference_cost[rows_],
        )

    def choose(self, knobs: Iterable[Knob]) -> "Outcomes":
        """Some settings only, in the order given.

        Raises:
            InputError: a knob that no setting has, or one given twice.
        """
        chosen = tuple(knobs)
        rows = [self.setting(knob) for knob in chosen]
        return replace(self, knobs=chosen, quality=self.quality[rows], cost=self.cost[rows])

    @staticmethod
    def join(parts: "Sequence[Outcomes]") -> "Outcomes":
        """Settings of several policies side by side, measured on the same inputs.

        Raises:
            InputError: nothing given, other inputs (the references differ), or equal knobs.
            UnitError: costs in different units.
        """
        if not parts:
            raise InputError("join needs the outcomes of at least one policy, got none")
        first = parts[0]
        for place, part in enumerate(parts[1:], 1):
            if part.unit != first.unit:
                raise UnitError(
                    f"outcomes must have one unit to be joined, got {first.unit!r} and "
                    f"{part.unit!r} (number {place}): convert the costs first"
                )
            if not (
                np.array_equal(part.reference_quality, first.reference_quality)
                and np.array_equal(part.reference_cost, first.reference_cost)
            ):
                raise InputError(
                    f"outcomes must be measured on the same inputs to be joined, but number "
                    f"{place} has another reference than number 0: evaluate both on one data set"
                )
        return replace(
            first,
            knobs=tuple(knob for part in parts for knob in part.knobs),
            quality=np.concatenate([part.quality for part in parts]),
            cost=np.concatenate([part.cost for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Frontier:
    """The (cost, quality) points that a policy reaches over its knob.

    Between two points every mixture is reachable too: let chance send a share of the inputs to one
    setting and the rest to the other. `hull`, `quality_at`, `cost_at` and `mix` count on that.

    Raises:
        InputError: no point, or a point that is not finite.
    """

    name: str
    points: tuple[Point, ...]
    unit: str
    reference: Point | None = None
    outcomes: Outcomes | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))
        if not self.points:
            raise InputError(f"a frontier needs at least one point, {self.name!r} has none")
        for point in self.points:
            if not (np.isfinite(point.quality) and np.isfinite(point.cost)):
                raise InputError(f"points must be finite, {self.name!r} has {point}")

    @classmethod
    def from_outcomes(cls, name: str, outcomes: Outcomes) -> Self:
        """Mean quality and mean cost of every setting, with the outcomes kept for `pick`."""
        quality, cost = outcomes.quality.mean(axis=1), outcomes.cost.mean(axis=1)
        points = tuple(
            Point(knob, float(q), float(c))
            for knob, q, c in zip(outcomes.knobs, quality, cost, strict=True)
        )
        reference = Point(
            "reference",
            float(outcomes.reference_quality.mean()),
            float(outcomes.reference_cost.mean()),
        )
        return cls(name, points, outcomes.unit, reference, outcomes)

    def pareto(self) -> "Frontier":
        """The points that no other dominates, by ascending cost; of equal points the first stays.

        A point is dominated when another costs no more and is no worse, and beats it in one of the
        two. The outcomes stay whole: leaving out settings by what these outcomes say and then
        certifying on them would break the promise that `pick` makes.
        """
        # the sort is stable: of points equal in both, the first comes first
        ranked = sorted(self.points, key=lambda point: (point.cost, -point.quality))
        kept: list[Point] = []
        for point in ranked:
            if not kept or point.quality > kept[-1].quality:
                kept.append(point)
        return replace(self, points=tuple(kept))

    def hull(self) -> "Frontier":
        """The corners of the best that mixing reaches: concave, rising, by ascending cost.

        Points on a straight line between two corners are left out; mixing reaches them.
        """
        corners: list[Point] = []
        for point in self.pareto().points:
            while len(corners) >= 2 and not _above(corners[-2], corners[-1], point):
                corners.pop()
            corners.append(point)
        return replace(self, points=tuple(corners))

    def mix(self, cost: float) -> list[tuple[Knob, float]]:
        """Which settings, with which probability, spend `cost` per input on the hull.

        Beyond the dearest corner that is the best setting alone, which spends less.

        Raises:
            InputError: less than the cheapest point costs, or not a number.
        """
        return [(point.knob, share) for point, share in self._shares(cost)]

    def quality_at(self, cost: float) -> float:
        """The best quality that mixing reaches for this cost per input.

        Raises:
            InputError: less than the cheapest point costs, or not a number.
        """
        return sum(point.quality * share for point, share in self._shares(cost))

    def cost_at(self, quality: float) -> float:
        """The least cost per input at which mixing reaches this quality.

        Raises:
            InputError: not a number.
            UnreachableError: above the best point.
        """
        if np.isnan(quality):
            raise InputError(f"a quality must be a number, got {quality}")
        corners = self.hull().points
        if quality > corners[-1].quality:
            raise UnreachableError(
                f"{self.name!r} reaches a quality of at most {corners[-1].quality:.6g}, "
                f"{quality:.6g} was asked for: ask for less, or add a better setting"
            )
        place = bisect_left([point.quality for point in corners], quality)
        if place == 0:
            return corners[0].cost
        low, high = corners[place - 1], corners[place]
        share = (quality - low.quality) / (high.quality - low.quality)
        return low.cost + share * (high.cost - low.cost)

    def hypervolume(self, *, worst_quality: float, worst_cost: float) -> float:
        """Area that the points dominate, up to a worst quality and a worst cost (no mixing).

        Points that are no better than a limit add nothing. The unit is quality times cost.
        """
        area, right = 0.0, worst_cost
        for point in reversed(self.pareto().points):
            width = right - point.cost
            height = point.quality - worst_quality
            if width > 0 and height > 0:
                area += width * height
                right = point.cost
        return area

    def pick(
        self,
        max_drop: float = 0.01,
        confidence: float = 0.95,
        *,
        order: Sequence[Knob] | None = None,
        method: "Method" = "auto",
    ) -> "Pick":
        """The cheapest setting whose quality drop is certified; see `certify`.

        Args:
            max_drop: largest mean quality that may be lost against the reference, in [0, 1).
            confidence: probability of the promise, in (0, 1).
            order: the settings to test, safest first, fixed before these outcomes were seen;
                default: the order of the outcomes' knobs.
            method: see `p_value`.

        Raises:
            InputError: the frontier has no outcomes, or an argument is out of range.
        """
        from pointsman.frontier.certify import certify  # certify imports this module

        if self.outcomes is None:
            raise InputError(
                f"a pick needs outcomes input by input, {self.name!r} has only means: build it "
                "with Frontier.from_outcomes(name, outcomes)"
            )
        return certify(self.outcomes, max_drop, confidence, order=order, method=method)

    def _shares(self, cost: float) -> list[tuple[Point, float]]:
        corners = self.hull().points
        if np.isnan(cost) or cost < corners[0].cost:
            raise InputError(
                f"the cheapest point of {self.name!r} costs {corners[0].cost:.6g} {self.unit}, "
                f"{cost:.6g} was asked for: ask for more, or add a cheaper setting"
            )
        place = bisect_left([point.cost for point in corners], cost)
        if place == len(corners):
            return [(corners[-1], 1.0)]
        if corners[place].cost == cost:
            return [(corners[place], 1.0)]
        low, high = corners[place - 1], corners[place]
        share = (cost - low.cost) / (high.cost - low.cost)
        return [(low, 1.0 - share), (high, share)]


def _above(left: Point, middle: Point, right: Point) -> bool:
    """Whether the middle point lies strictly above the line from left to right."""
    return (middle.quality - left.quality) * (right.cost - left.cost) > (
        right.quality - left.quality
    ) * (middle.cost - left.cost)


def _frozen(values: npt.ArrayLike, name: str) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64).view()
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array of numbers: {error}") from error
    array.setflags(write=False)
    return array


def _check_knobs(knobs: tuple[Knob, ...]) -> None:
    seen: set[Knob] = set()
    for knob in knobs:
        if knob in seen:
            raise InputError(f"knobs must be distinct, {knob!r} comes twice: give each its name")
        seen.add(knob)


def _check_range(array: Array, name: str, *, high: float) -> None:
    wrong = ~((array >= 0) & (array <= high) & np.isfinite(array))  # NaN fails too
    if wrong.any():
        where = tuple(int(index) for index in np.argwhere(wrong)[0])
        allowed = "finite and not negative" if high == np.inf else f"within [0, {high:g}]"
        raise InputError(
            f"{name} must be {allowed}, got {array[where]} at index {where} "
            f"({int(wrong.sum())} such values): rescale or repair the log"
        )


def _listed(knobs: Sequence[Knob], most: int = 8) -> str:
    shown = ", ".join(repr(knob) for knob in knobs[:most])
    return shown if len(knobs) <= most else f"{shown}, ..."
