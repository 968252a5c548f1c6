"""How the loss of routed networks falls with their size and their number of experts, as a law.

Legend: R runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pointsman.errors import InputError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Numbers: TypeAlias = float | Sequence[float] | Array

# Of log(start) and log(limit / start - 1). A limit next to the start would make experts a constant
# times anything, and the exponents would lose their meaning.
BOUNDS = ((-0.7, 5.0), (0.0, 12.0))
STARTS = ((1.0, 100.0), (2.0, 1000.0), (4.0, 30.0))  # of the search for (start, limit)


@dataclass(frozen=True)
class RoutedLaw:
    """log10 loss = a log10 N + b log10 Ê + c log10 N log10 Ê + d.

    N is the number of parameters that one token runs through, that is, of the network with one
    expert. Ê counts experts with diminishing returns: it is `start` for one expert and nears
    `limit` for many. Holds for the number of training tokens it was fitted at (Clark et al. 2022,
    "Unified scaling laws for routed language models", arXiv 2202.01169, eq. 7 to 9).

    Args:
        a: exponent of the size.
        b: exponent of the experts.
        c: how much less experts help larger networks; 0 means equally.
        d: offset.
        start: above 0.
        limit: above `start`.

    Raises:
        InputError: `start` and `limit` not in this order.
    """

    a: float
    b: float
    c: float
    d: float
    start: float
    limit: float

    def __post_init__(self) -> None:
        if not 0 < self.start < self.limit:
            raise InputError(
                f"a law needs 0 < start < limit, got start {self.start} and limit {self.limit}"
            )

    def saturated(self, experts: Numbers) -> Array:
        """Ê, of the shape of `experts`."""
        return _saturated(np.asarray(experts, dtype=np.float64), self.start, self.limit)

    def predict(self, parameters: Numbers, experts: Numbers) -> Array:
        """Loss of a network of this size and number of experts; shapes are broadcast."""
        size = np.log10(np.asarray(parameters, dtype=np.float64))
        many = np.log10(self.saturated(experts))
        loss: Array = 10 ** (self.a * size + self.b * many + self.c * size * many + self.d)
        return loss

    def effective_parameters(self, parameters: Numbers, experts: Numbers) -> Array:
        """Size of the network with one expert that has the same loss; shapes are broadcast."""
        size = np.log10(np.asarray(parameters, dtype=np.float64))
        many, one = np.log10(self.saturated(experts)), np.log10(self.start)
        slope = self.a + self.c * one
        effective: Array = 10 ** (
            size * (self.a + self.c * many) / slope + self.b * (many - one) / slope
        )
        return effective

    @property
    def cutoff(self) -> float:
        """Size from which on more experts no longer help; infinite where there is none."""
        return float(10 ** (-self.b / self.c)) if self.b < 0 < self.c else float("inf")


def fit(
    parameters: Sequence[float] | Array,
    experts: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    *,
    interaction: bool = True,
) -> RoutedLaw:
    """The law nearest to these runs, by least squares on the logarithm of the loss.

    For given `start` and `limit` the law is linear in the rest, which is solved exactly; the two
    are searched for, from a start of 0.5 on, with a limit of at least twice the start.

    Args:
        parameters: (R,) sizes, of at least two kinds.
        experts: (R,) numbers of experts from 1, of at least three kinds.
        losses: (R,) above 0; R at least 6.
        interaction: False keeps c at 0.

    Raises:
        InputError: too few runs or kinds, lengths that differ, or numbers out of range.
    """
    from scipy.optimize import minimize

    sizes, counts, found = (
        np.asarray(each, dtype=np.float64) for each in (parameters, experts, losses)
    )
    _check(sizes, counts, found)
    # Around the mean size, the columns of the linear part are less alike.
    size, loss = np.log10(sizes), np.log10(found)
    centre = size.mean()

    def solve(point: Array) -> tuple[Array, float]:
        many = np.log10(_saturated(counts, *_range(point)))
        columns = [size - centre, many, (size - centre) * many, np.ones_like(size)]
        if not interaction:
            del columns[2]
        table = np.stack(columns, axis=1)
        answer, *_ = np.linalg.lstsq(table, loss, rcond=None)
        return answer, float(np.square(table @ answer - loss).sum())

    def misfit(point: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return solve(point)[1]

    searches = [
        minimize(
            misfit,
            np.log([start, limit / start - 1]),
            method="L-BFGS-B",
            bounds=BOUNDS,
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        for start, limit in STARTS
    ]
    best = min(searches, key=lambda search: float(search.fun)).x
    a, b, *rest = (float(value) for value in solve(best)[0])
    c, d = (rest[0], rest[1]) if interaction else (0.0, rest[0])
    start, limit = _range(best)
    return RoutedLaw(a, float(b - c * centre), c, float(d - a * centre), start, limit)


def _saturated(experts: Array, start: float, limit: float) -> Array:
    saturated: Array = 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / limit)) + 1 / limit)
    return saturated


def _range(point: Array) -> tuple[float, float]:
    """(start, limit), in order wherever the search goes."""
    start = float(np.exp(point[0]))
    return start, start * (1 + float(np.exp(point[1])))


def _check(sizes: Array, counts: Array, losses: Array) -> None:
    if not sizes.shape == counts.shape == losses.shape or sizes.ndim != 1 or len(sizes) < 6:
        raise InputError(
            "a law is fitted to one size, number of experts and loss for each of at least 6 runs, "
            f"got {sizes.shape}, {counts.shape} and {losses.shape}"
        )
    fine = np.isfinite([sizes, counts, losses]).all()
    if not fine or sizes.min() <= 0 or counts.min() < 1 or losses.min() <= 0:
        raise InputError("sizes and losses must be above 0, experts at least 1, and all finite")
    kinds = len(np.unique(sizes)), len(np.unique(counts))
    if kinds[0] < 2 or kinds[1] < 3:
        raise InputError(
            "a law needs runs of at least 2 sizes and 3 numbers of experts, "
            f"got {kinds[0]} and {kinds[1]}"
        )
