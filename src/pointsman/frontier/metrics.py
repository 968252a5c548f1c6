"""Single numbers for a whole curve of cost against quality, defined as published.

Figures from different papers share names but not definitions: compare only what was computed here.
A curve is a pair of arrays: the share of inputs sent to the strong model and the quality reached.
Its two ends are known (share 0 is the weak model alone, share 1 the strong one) and are added where
they are missing; between points it is straight, because mixing by chance reaches every point of a
line.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, UnreachableError
from pointsman.frontier.points import Array, Frontier


class Curve(NamedTuple):
    """Quality against the share of inputs that the strong model answers; shares ascend, 0 to 1."""

    share: Array
    quality: Array


def pgr(quality: float, *, weak: float, strong: float) -> float:
    """Performance gap recovered: (quality - weak) / (strong - weak) (RouteLLM, 2406.18665).

    0 is the weak model, 1 the strong one. Above 1 where the weak model wins on some inputs that
    the strong one loses, and the router knows them.

    Raises:
        InputError: the strong model is not better than the weak one.
    """
    if not strong > weak:
        raise InputError(
            f"the strong model must be better than the weak one, got strong={strong}, "
            f"weak={weak}: there is no gap to recover"
        )
    return (quality - weak) / (strong - weak)


def apgr(share: npt.ArrayLike, quality: npt.ArrayLike, *, weak: float, strong: float) -> float:
    """Average of the gap recovered over the share of strong calls, 0 to 1 (2406.18665).

    Chance gives 0.5. The integral is exact for the curve's straight pieces; the authors average
    over ten or eleven thresholds, which depends on where those fall.

    Args:
        share: (P,) in [0, 1], any order; the quality of equal shares is averaged.
        quality: (P,)
        weak: quality of the weak model alone.
        strong: quality of the strong model alone.

    Raises:
        InputError: as in `pgr`, or shares and qualities that are no curve.
    """
    pgr(strong, weak=weak, strong=strong)
    curve = _curve(share, quality, weak=weak, strong=strong)
    return pgr(_area(curve.share, curve.quality), weak=weak, strong=strong)


def cpt(
    share: npt.ArrayLike,
    quality: npt.ArrayLike,
    target: float,
    *,
    weak: float,
    strong: float,
) -> float:
    """Call-performance threshold: the least share of strong calls that recovers `target`.

    The first crossing on the curve, so it is right for curves that dip; the authors' code
    interpolates share over quality, which needs a quality that only rises (2406.18665).

    Args:
        share: as in `apgr`.
        quality: as in `apgr`.
        target: share of the gap to recover, such as 0.8.
        weak: quality of the weak model alone.
        strong: quality of the strong model alone.

    Raises:
        InputError: as in `apgr`.
        UnreachableError: the curve never recovers so much.
    """
    pgr(strong, weak=weak, strong=strong)
    curve = _curve(share, quality, weak=weak, strong=strong)
    wanted = weak + target * (strong - weak)
    reached = np.flatnonzero(curve.quality >= wanted - 1e-12)  # a target of 1 despite rounding
    if reached.size == 0:
        best = pgr(float(curve.quality.max()), weak=weak, strong=strong)
        raise UnreachableError(
            f"the curve recovers at most {best:.6g} of the gap, {target:.6g} was asked for: "
            "ask for less"
        )
    at = int(reached[0])
    if at == 0:
        return float(curve.share[0])
    low, high = curve.quality[at - 1], curve.quality[at]
    step = min(1.0, (wanted - low) / (high - low))
    return float(curve.share[at - 1] + step * (curve.share[at] - curve.share[at - 1]))


def aiq(
    frontier: Frontier,
    *,
    min_cost: float | None = None,
    max_cost: float | None = None,
    below: float = 0.0,
) -> float:
    """Average improvement in quality: the mean height of the hull over a range of cost.

    1 / (max - min) times the integral of the best quality that mixing reaches (RouterBench,
    2403.12031, equation for AIQ). Beyond its dearest corner a frontier keeps its best quality.
    Give the same range to all that you compare; the authors' code divides by the dearest cost
    alone and starts each router at its own cheapest, which rewards having no cheap setting.

    Args:
        frontier: hulled here.
        min_cost: default: the cheapest point.
        max_cost: default: the dearest point.
        below: quality that counts at costs under the cheapest point, where nothing answers.

    Raises:
        InputError: a range that is empty or not finite.
    """
    corners = frontier.hull().points
    costs = np.array([point.cost for point in corners])
    qualities = np.array([point.quality for point in corners])
    low = float(costs[0]) if min_cost is None else min_cost
    high = max(point.cost for point in frontier.points) if max_cost is None else max_cost
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(
            f"the range of cost must be finite and not empty, got [{low}, {high}]: give min_cost "
            "and max_cost, the same for all frontiers compared"
        )
    start = min(max(low, float(costs[0])), high)
    inside = costs[(costs > start) & (costs < high)]
    at = np.concatenate([[start], inside, [high]])
    area = below * (start - low) + _area(at, np.interp(at, costs, qualities))
    return area / (high - low)


def deferral_curve(
    scores: npt.ArrayLike, weak_quality: npt.ArrayLike, strong_quality: npt.ArrayLike
) -> Curve:
    """Quality as ever more inputs, by descending score, go to the strong model.

    Inputs of equal score go together: the curve is straight across them, as if chance ordered
    them, so the order of rows does not matter.

    Args:
        scores: (N,) higher is deferred earlier.
        weak_quality: (N,) of the weak model, input by input.
        strong_quality: (N,) of the strong model.

    Raises:
        InputError: lengths that differ, no input, or a number that is not finite.
    """
    columns = [np.asarray(c, dtype=np.float64) for c in (scores, weak_quality, strong_quality)]
    shapes = [column.shape for column in columns]
    if columns[0].ndim != 1 or columns[0].size == 0 or len(set(shapes)) != 1:
        raise InputError(f"scores and qualities must be (N,) each, of one N > 0, got {shapes}")
    if not all(np.isfinite(column).all() for column in columns):
        raise InputError("scores and qualities must be finite: repair missing values")
    scores_, weak_, strong_ = columns
    _, group = np.unique(-scores_, return_inverse=True)
    n = scores_.size
    share = np.cumsum(np.bincount(group)) / n
    gain = np.cumsum(np.bincount(group, strong_ - weak_)) / n
    return Curve(np.concatenate([[0.0], share]), weak_.mean() + np.concatenate([[0.0], gain]))


def deferral_area(
    scores: npt.ArrayLike, weak_quality: npt.ArrayLike, strong_quality: npt.ArrayLike
) -> float:
    """Area under the deferral curve: mean quality over all deferral rates from 0 to 1.

    The "AUC-DF" of Gupta et al. 2024 (2404.10136). A score that knows nothing gives the mean of
    the two models' qualities.

    Raises:
        InputError: as in `deferral_curve`.
    """
    return _area(*deferral_curve(scores, weak_quality, strong_quality))


def _area(x: Array, y: Array) -> float:
    """Trapezoids; numpy renamed its own between versions 1 and 2."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def _curve(share: npt.ArrayLike, quality: npt.ArrayLike, *, weak: float, strong: float) -> Curve:
    x, y = np.asarray(share, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"share and quality must be (P,) each, got {x.shape} and {y.shape}")
    if not (np.isfinite(y).all() and ((x >= 0) & (x <= 1)).all()):
        raise InputError("shares must lie in [0, 1] and qualities must be finite")
    places, group = np.unique(x, return_inverse=True)
    heights = np.bincount(group, y) / np.bincount(group) if x.size else y
    inner = (places > 0) & (places < 1)  # the ends are the two models themselves
    return Curve(
        np.concatenate([[0.0], places[inner], [1.0]]),
        np.concatenate([[weak], heights[inner], [strong]]),
    )
