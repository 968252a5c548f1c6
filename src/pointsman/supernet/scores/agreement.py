"""How well one order of networks agrees with another: rank correlations, with their uncertainty.

Legend: G genotypes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pointsman.errors import InputError

Values = Sequence[float] | np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Agreement:
    """Of two lists of values.

    Args:
        kendall: tau-b, from -1 to 1, which allows for ties.
        spearman: correlation of the ranks.
        count: pairs of values that were compared.
        dropped: pairs left out because a value was not finite.
        low: of the bootstrap interval of `spearman`.
        high: of the same.

    Both correlations are NaN where one list is constant: nothing can be ranked by it.
    """

    kendall: float
    spearman: float
    count: int
    dropped: int = 0
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        dropped = f", {self.dropped} without a value" if self.dropped else ""
        return (
            f"Kendall {self.kendall:+.2f}, Spearman {self.spearman:+.2f} (n={self.count}{dropped})"
        )


def rank_agreement(
    guessed: Values, truth: Values, *, resamples: int = 0, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Rank correlation of guessed values with true ones.

    Args:
        guessed: (G,) such as accuracies with inherited weights, or scores.
        truth: (G,) such as accuracies of the networks trained alone.
        resamples: of the bootstrap (percentile) interval of Spearman's correlation; 0: none.
        confidence: of the interval.
        seed: of the resamples.

    Raises:
        InputError: not equally many values, or fewer than two pairs of finite ones.
    """
    one, other = np.asarray(guessed, dtype=float), np.asarray(truth, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise InputError(f"each guess has its truth, got shapes {one.shape} and {other.shape}")
    kept = np.isfinite(one) & np.isfinite(other)
    one, other, dropped = one[kept], other[kept], int((~kept).sum())
    if len(one) < 2:
        raise InputError(
            f"two networks or more can be ranked, got {len(one)} with finite values and {dropped} "
            "without"
        )
    kendall, spearman = _kendall(one, other), _spearman(one, other)
    low = high = math.nan
    if resamples and not math.isnan(spearman):
        rng = np.random.default_rng(seed)
        rows = (rng.integers(len(one), size=len(one)) for _ in range(resamples))
        found = [_spearman(one[at], other[at]) for at in rows]
        tail = (1 - confidence) / 2
        low, high = (float(each) for each in np.nanquantile(found, [tail, 1 - tail]))
    return Agreement(kendall, spearman, len(one), dropped, low, high)


def partial_agreement(guessed: Values, truth: Values, given: Values) -> float:
    """Spearman's correlation of guess and truth with the rank of a third value held fixed.

    What a score knows beyond, say, the number of parameters. NaN where one list is constant, or
    follows from the third.
    """
    a, b, c = (np.asarray(each, dtype=float) for each in (guessed, truth, given))
    kept = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    ab, ac, bc = (_spearman(x[kept], y[kept]) for x, y in ((a, b), (a, c), (b, c)))
    rest = (1 - ac**2) * (1 - bc**2)
    return (ab - ac * bc) / math.sqrt(rest) if rest > 1e-12 else math.nan


def _constant(*lists: np.ndarray[Any, np.dtype[Any]]) -> bool:
    return any(len(values) == 0 or bool((values == values[0]).all()) for values in lists)


def _kendall(one: Any, other: Any) -> float:
    from scipy.stats import kendalltau  # slow to import

    return math.nan if _constant(one, other) else float(kendalltau(one, other).statistic)


def _spearman(one: Any, other: Any) -> float:
    from scipy.stats import rankdata

    if _constant(one, other):
        return math.nan
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
