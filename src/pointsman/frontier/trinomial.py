"""Exact test of the mean drop where quality is right or wrong, so a drop is -1, 0 or 1.

Legend: n inputs, i losses (drop 1), j wins (drop -1); p and q are their probabilities, so the mean
drop is p - q. The hypothesis p - q >= max_drop leaves q open: the p-value is the largest
probability over q.

1. Tables (i, j) are ordered by T, the limit d at which the signed root of the likelihood-ratio
   statistic for "p - q = d" falls to -1.645. T does not depend on max_drop. Any ordering gives a
   valid test; this one is sharp near 95% (Buehler 1957 on limits from a designated order).
2. The region R of tables ordered at or below the observed one holds, with (i, j), also (i-1, j) and
   (i, j+1). Proof: the log-likelihood is concave, so the root is monotone in d. Trading a tie for
   a loss changes the square of the root by 2 ln[(p^/o^) / (p~/o~)] (envelope theorem; o is the
   share of ties, ^ the free and ~ the restricted estimate), which is not positive, because the
   score equation i/p~ - (n-i-j)/o~ = k with k <= 0 says p~/o~ >= p^/o^. For wins the sign turns.
   So P(R) falls as p rises and grows as q rises.
3. On a cell a <= q <= b of a grid, P(R) at (max_drop + a, b) is therefore at least P(R) at every
   member of the hypothesis there: the maximum over the continuous q is bounded by one over cells.
4. The grid covers a Clopper-Pearson interval of level 1 - BETA for q, and BETA is added, which
   keeps the p-value valid (Berger & Boos 1994). Interval, grid and R do not depend on max_drop,
   so p falls as it rises.

Where we depart from the plain test, which orders by i - j: that order lets wins that were hardly
possible blur a clean sample; with no loss and no win in n inputs it gives p = 0.3 at max_drop 0.01,
n = 300, where this one gives close to (1 - max_drop)^n = 0.05.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv, gammaln, xlog1py, xlogy

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BETA = 1e-4  # no p-value is smaller
ROOT = 1.6448536  # the order of tables is tuned for 95%; it is valid for every confidence
CELLS = 160
REACH = 5.0  # standard deviations of j that are summed; what lies outside is added as a whole
SLACK = 1e-9  # tables this close to the edge count as inside, so that rounding errs to safety


@dataclass(frozen=True, eq=False)
class Region:
    """The tables at or below the observed one, prepared for every cell; free of max_drop.

    The terms of the sum over j lie flat, cell after cell.
    """

    left: Array  # (CELLS,) left edge a of each cell
    right: Array  # (CELLS,) right edge b
    outside: Array  # (CELLS,) probability of the j that are not summed
    cell: Ints  # (terms,) the cell of each term
    trials: Ints  # (terms,) n - j
    most: Ints  # (terms,) the most losses inside the region, -1 for none
    weight: Array  # (terms,) P(j wins) at q = b
    whole: bool  # every table is inside: nothing but losses was seen

    @classmethod
    def of(cls, losses: int, wins: int, n: int) -> Self:
        """The region of the table with these losses and wins among n inputs."""
        low, high = _interval(wins, n)
        edges = np.linspace(np.sqrt(low), np.sqrt(high), CELLS + 1) ** 2  # even in units of spread
        left, right = edges[:-1], edges[1:]
        spread = REACH * np.sqrt(n * right * (1 - right)) + REACH
        first = np.maximum(np.floor(n * right - spread), 0).astype(np.int64)
        last = np.minimum(np.ceil(n * right + spread), n).astype(np.int64)
        sizes = last - first + 1
        cell = np.repeat(np.arange(CELLS), sizes)
        j = np.arange(cell.size) - np.repeat(np.cumsum(sizes) - sizes - first, sizes)
        base = int(first.min())
        wins_seen = np.arange(base, int(last.max()) + 1)
        choose = gammaln(n + 1) - gammaln(wins_seen + 1) - gammaln(n - wins_seen + 1)
        chance = right[cell]
        weight = np.exp(choose[j - base] + xlogy(j, chance) + xlog1py(n - j, -chance))
        outside = np.maximum(1.0 - np.bincount(cell, weight, CELLS), 0.0)
        whole = losses == n
        most = _most_losses(wins_seen, n, _limit(losses, wins, n)) if not whole else n - wins_seen
        # the observed table is inside whatever the last bit says
        at = (wins_seen >= wins) & (wins_seen <= n - losses)
        most[at] = np.maximum(most[at], losses)
        return cls(left, right, outside, cell, n - j, most[j - base], weight, whole)


def exact(region: Region, max_drop: float) -> float:
    """The largest P(R) over the interval for q where p - q = max_drop, plus BETA."""
    if region.whole:
        return 1.0
    loss = np.minimum(max_drop + region.left, 1.0 - region.right)
    # the chance of a loss among the inputs that are not wins
    share = np.clip(loss / np.maximum(1.0 - region.right, 1e-300), 0.0, 1.0)[region.cell]
    inside = np.zeros(region.most.shape)
    some = (region.most >= 0) & (region.most < region.trials)
    k, trials = region.most[some], region.trials[some]
    inside[some] = betainc(trials - k, k + 1.0, 1.0 - share[some])
    inside[region.most >= region.trials] = 1.0
    mass = np.bincount(region.cell, region.weight * inside, CELLS) + region.outside
    possible = region.left <= (1.0 - max_drop) / 2  # p + q <= 1
    return min(1.0, float(mass[possible].max(initial=0.0)) + BETA)


def _interval(wins: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson interval of level 1 - BETA for the probability of a win."""
    low = float(betaincinv(wins, n - wins + 1, BETA / 2)) if wins else 0.0
    high = float(betaincinv(wins + 1, n - wins, 1 - BETA / 2)) if wins < n else 1.0
    return low, high


def _deviance(losses: Ints, wins: Ints, n: int, d: Array | float) -> Array:
    """Twice the log-likelihood lost by forcing p - q = d; the estimate is Tango's (1998)."""
    ties = n - losses - wins
    middle = losses * (1 + d) + wins * (1 - d) - 2.0 * n * d
    q = (middle + np.sqrt(np.maximum(middle**2 + 8.0 * n * wins * d * (1 - d), 0.0))) / (4.0 * n)
    q = np.clip(q, np.maximum(0.0, -d), (1 - d) / 2)
    total = np.zeros(q.shape)
    with np.errstate(divide="ignore"):
        for count, chance in ((losses, q + d), (wins, q), (ties, 1 - 2 * q - d)):
            seen = count > 0  # no count, no loss, even where the chance is zero
            ratio = np.where(seen, count, 1) / (n * np.maximum(chance, 0.0))
            total += np.where(seen, count * np.log(np.where(seen, ratio, 1.0)), 0.0)
    return 2 * total


def _limit(losses: int, wins: int, n: int) -> float:
    """T of the observed table, rounded up: the difference at which the root reaches -ROOT."""
    i, j = np.asarray(losses), np.asarray(wins)
    low, high = (losses - wins) / n, 1.0
    for _ in range(8):  # each round keeps one part of 64
        d = np.linspace(low, high, 65)
        first = 1 + int(np.argmax(_deviance(i, j, n, d[1:]) >= ROOT**2))
        low, high = d[first - 1], d[first]
    return float(high)


def _most_losses(wins: Ints, n: int, d: float) -> Ints:
    """For each number of wins, the most losses inside the region with limit d, -1 for none."""
    low = np.full(wins.shape, -1, dtype=np.int64)  # inside
    high = n - wins + 1  # outside
    while (high - low > 1).any():
        i = (low + high) // 2
        i = np.maximum(i, 0)
        inside = (i - wins <= n * d) & (_deviance(i, wins, n, d) >= ROOT**2 - SLACK)
        open_ = high - low > 1
        low = np.where(open_ & inside, i, low)
        high = np.where(open_ & ~inside, i, high)
    return low
