"""From a signal to the quality to be expected: calibration that knows missing values.

Legend: N answers, K knots.
"""

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.saving import Arrays, Plain

Array = npt.NDArray[np.float64]
MOST_KNOTS = 64
STEPS, RIDGE = 50, 1e-3  # of the logistic fit


class Monotone:
    """Expected quality as a rising function of a signal: isotonic regression, joined by lines.

    Pool-adjacent-violators (Barlow et al. 1972; as calibration Zadrozny & Elkan 2002). Where we
    depart from the step function: between the middles of two blocks the value is a straight line,
    so that a small change of the signal never makes a jump, and blocks of fewer than `least`
    answers are merged first, because the ends of an isotonic fit are else 0 and 1 by luck alone.

    A signal that is missing (NaN) counts as the least sure: it gets the lowest value.

    Args:
        least: answers in a block, at least.

    Attributes:
        signals_: (K,) ascending.
        values_: (K,) not falling. K is 0 where nothing was known.
    """

    def __init__(self, least: int = 10) -> None:
        self.least = least

    def fit(self, signal: npt.ArrayLike, quality: npt.ArrayLike) -> Self:
        """Learn from (N,) signals and qualities in [0, 1]; pairs with a NaN are left out."""
        s, q = _known(signal, quality)
        if len(s) == 0:
            self.signals_, self.values_ = np.zeros(0), np.zeros(0)
            return self
        middles, means, sizes = _blocks(s, q, max(1, self.least))
        middles, means = _pooled(middles, means, sizes)
        if len(middles) > MOST_KNOTS:
            kept = np.unique(np.linspace(0, len(middles) - 1, MOST_KNOTS).round().astype(int))
            middles, means = middles[kept], means[kept]
        self.signals_, self.values_ = middles, means
        return self

    def predict(self, signal: npt.ArrayLike) -> Array:
        """(N,) expected quality; NaN everywhere where nothing was known in the fit."""
        s = np.asarray(signal, dtype=np.float64)
        if len(self.signals_) == 0:
            return np.full(s.shape, np.nan)
        least = np.where(np.isnan(s), -np.inf, s)
        expected: Array = np.interp(least, self.signals_, self.values_)
        return expected

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords, and the knots."""
        return {"least": self.least}, {"signals": self.signals_, "values": self.values_}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same calibration again."""
        part = cls(least=int(plain["least"]))
        part.signals_ = np.asarray(arrays["signals"], dtype=np.float64)
        part.values_ = np.asarray(arrays["values"], dtype=np.float64)
        return part


class Logistic:
    """Expected quality as a logistic curve of a signal: two numbers, for logs with few answers.

    Platt scaling (Platt 1999) with qualities in [0, 1] as the targets, by Newton's method with a
    little ridge on the standardised signal, so that a separable log still gives a finite slope. The
    slope may be negative: a signal that misleads is read the other way round.

    A signal that is missing (NaN) counts as the least sure: the lower end of what was seen.

    Attributes:
        slope_, offset_: of the logit over the signal.
        lowest_: signal of the least sure answer seen; NaN where nothing was known.
    """

    def fit(self, signal: npt.ArrayLike, quality: npt.ArrayLike) -> Self:
        """Learn from (N,) signals and qualities in [0, 1]; pairs with a NaN are left out."""
        s, q = _known(signal, quality)
        self.slope_, self.offset_, self.lowest_ = 0.0, 0.0, math.nan
        if len(s) == 0:
            return self
        middle, scale = float(s.mean()), float(s.std())
        z = (s - middle) / scale if scale > 0 else np.zeros(len(s))
        # imagined: half a right and half a wrong answer, so that the offset is finite as well
        mean = (float(q.sum()) + 0.5) / (len(q) + 1)
        slope, offset = 0.0, math.log(mean / (1 - mean))
        for _ in range(STEPS):
            p = 1 / (1 + np.exp(-np.clip(slope * z + offset, -30, 30)))
            weight = np.maximum(p * (1 - p), 1e-9)
            error = p - q
            ridge = RIDGE * len(z)
            gradient = np.array([(error * z).sum() + ridge * slope, error.sum() + RIDGE * offset])
            hessian = np.array(
                [
                    [(weight * z * z).sum() + ridge, (weight * z).sum()],
                    [(weight * z).sum(), weight.sum() + RIDGE],
                ]
            )
            step = np.linalg.solve(hessian, gradient)
            size = float(np.abs(step).max())
            slope, offset = slope - step[0] / max(1, size), offset - step[1] / max(1, size)
            if size < 1e-10:
                break
        self.slope_ = float(slope / scale) if scale > 0 else 0.0
        self.offset_ = float(offset - self.slope_ * middle)
        self.lowest_ = float(s.min() if self.slope_ >= 0 else s.max())
        return self

    def predict(self, signal: npt.ArrayLike) -> Array:
        """(N,) expected quality; NaN everywhere where nothing was known in the fit."""
        s = np.asarray(signal, dtype=np.float64)
        if math.isnan(self.lowest_):
            return np.full(s.shape, np.nan)
        s = np.where(np.isnan(s), self.lowest_, s)
        expected: Array = 1 / (1 + np.exp(-np.clip(self.slope_ * s + self.offset_, -30, 30)))
        return expected

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The curve."""
        return {}, {"curve": np.array([self.slope_, self.offset_, self.lowest_])}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same calibration again."""
        part = cls()
        part.slope_, part.offset_, part.lowest_ = (float(value) for value in arrays["curve"])
        return part


def _known(signal: npt.ArrayLike, quality: npt.ArrayLike) -> tuple[Array, Array]:
    s, q = np.asarray(signal, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if s.ndim != 1 or s.shape != q.shape:
        raise InputError(
            f"signals and qualities must be (answers,) each, got {s.shape} and {q.shape}"
        )
    both = np.isfinite(s) & np.isfinite(q)
    return s[both], q[both]


def _blocks(s: Array, q: Array, least: int) -> tuple[Array, Array, Array]:
    """Middle signal, mean quality and size of runs of at least `least` answers, by the signal.

    Equal signals stay together, so that the order of the rows does not matter.
    """
    values, place = np.unique(s, return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    totals = np.bincount(place, q)
    run = np.zeros(len(values), dtype=np.int64)
    filled, at = 0.0, 0
    for i, count in enumerate(counts):
        run[i] = at
        filled += count
        if filled >= least:
            at, filled = at + 1, 0.0
    if filled and at:  # what is left at the upper end joins the run before it
        run[run == at] = at - 1
    sizes = np.bincount(run, counts).astype(np.float64)
    return np.bincount(run, values * counts) / sizes, np.bincount(run, totals) / sizes, sizes


def _pooled(middles: Array, means: Array, sizes: Array) -> tuple[Array, Array]:
    """Pool adjacent violators, until the means do not fall."""
    stack: list[tuple[float, float, float]] = []
    for middle, mean, size in zip(middles, means, sizes, strict=True):
        block = (float(middle), float(mean), float(size))
        while stack and stack[-1][1] >= block[1]:
            m, v, n = stack.pop()
            total = n + block[2]
            block = (
                (m * n + block[0] * block[2]) / total,
                (v * n + block[1] * block[2]) / total,
                total,
            )
        stack.append(block)
    return np.array([b[0] for b in stack]), np.array([b[1] for b in stack])
