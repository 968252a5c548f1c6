"""Whether any strategy beats what needs no look at the query: one model alone, or chance.

On validation queries the best strategy and its hull, models alone among it, are chosen; on
calibration queries it is measured how far that hull lies above the zero router's line at equal
cost, in the mean over even steps of cost. So nothing is measured where it was chosen, and a
strategy that learned nothing lies on the line but for noise. The interval is a bootstrap over
queries; a strategy is said to beat chance where its lower end is above zero.

The certificate is tested on the same calibration queries and does not suffer: the verdict only
says which of the accepted settings may be picked, and all of them hold together.

Legend: S settings, M models, N queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pointsman.compare.queries.metrics import Array, advantage, corners
from pointsman.frontier import Outcomes

RESAMPLES = 1000
STEPS = 20  # of cost at which a hull is compared with the zero router's line
LEVEL = 0.975  # one-sided: of unlearnable logs, about so many are recognised
SEED = 12


@dataclass(frozen=True)
class Verdict:
    """Whether routing is worth its trouble on a log, and how sure that is.

    Args:
        routable: the lower end of the gain is above zero.
        gain: mean quality above the zero router at equal cost.
        low: lower end of its one-sided interval.
        strategy: the best on validation.
        queries: how many it was measured on.
    """

    routable: bool
    gain: float
    low: float
    strategy: str
    queries: int

    def words(self, baseline: str) -> str:
        """The verdict in plain words.

        Args:
            baseline: what is recommended where nothing beats it.
        """
        points, low = f"{100 * self.gain:.2f}", f"{100 * self.low:.2f}"
        if self.routable:
            return (
                f"Looking at the query pays on this log: the best strategy, {self.strategy}, lies "
                f"{points} points of quality above mixing models by chance at equal cost "
                f"(one-sided {LEVEL:.1%} bound {low}, on {self.queries:,} calibration queries)."
            )
        return (
            "No strategy is shown to beat mixing models by chance on this log: the best, "
            f"{self.strategy}, lies {points} points of quality from it at equal cost (one-sided "
            f"{LEVEL:.1%} bound {low}, on {self.queries:,} calibration queries). Recommended: "
            f"{baseline}. What would change that: queries whose text tells which model they need, "
            "or a signal after the answer such as a confidence."
        )


def judge(
    validation: Sequence[Outcomes], calibration: Sequence[Outcomes], names: Sequence[str]
) -> Verdict:
    """Measure the best strategy against chance.

    Args:
        validation: of the models alone, and then of each strategy, on validation queries.
        calibration: the same on calibration queries.
        names: of the strategies.
    """
    alone, *tried = validation
    best = int(np.argmax([advantage(strategy, alone) for strategy in tried]))
    chosen, measured = (
        Outcomes.join([part[1 + best], part[0]]) for part in (validation, calibration)
    )
    excess = _excess(chosen, measured, alone, calibration[0])
    draws = np.random.default_rng(SEED).integers(0, len(excess), size=(RESAMPLES, len(excess)))
    low = float(np.quantile(excess[draws].mean(axis=1), 1 - LEVEL))
    return Verdict(low > 0, float(excess.mean()), low, names[best], len(excess))


def _excess(chosen: Outcomes, measured: Outcomes, base: Outcomes, alone: Outcomes) -> Array:
    """(n,) each query's part in the gain, over even steps of cost, of a hull chosen elsewhere.

    At a mean cost c between the zero router's corners a and b, its line is (1 - w) q_a + w q_b with
    w = (c - c_a) / (c_b - c_a). The gain is linear in the queries once w is fixed; that w follows
    these costs is taken into account by its derivative, the slope of the line.
    """
    line = corners(base.cost.mean(axis=1), base.quality.mean(axis=1))
    costs = base.cost[line].mean(axis=1)
    shares = _shares(chosen, np.linspace(costs[0], costs[-1], STEPS + 2)[1:-1])
    parts = [_mean(share, measured) for share in shares]
    total: Array = np.sum([quality - _chance(cost, alone, line) for quality, cost in parts], axis=0)
    return total / STEPS


def _shares(strategy: Outcomes, costs: Array) -> Array:
    """(C, S) how the hull of a strategy mixes its settings to spend so much; its ends stay flat."""
    cost, quality = strategy.cost.mean(axis=1), strategy.quality.mean(axis=1)
    hull = corners(cost, quality)
    shares = np.zeros((len(costs), len(cost)))
    for row, wanted in zip(shares, np.clip(costs, cost[hull[0]], cost[hull[-1]]), strict=True):
        right = min(int(np.searchsorted(cost[hull], wanted)), len(hull) - 1)
        low, high = hull[max(right - 1, 0)], hull[right]
        part = (wanted - cost[low]) / (cost[high] - cost[low]) if high != low else 1.0
        row[low] += 1 - part
        row[high] += part
    return shares


def _mean(share: Array, outcomes: Outcomes) -> tuple[Array, Array]:
    """(n,) quality and cost expected of a mixture."""
    used = np.flatnonzero(share)
    return share[used] @ outcomes.quality[used], share[used] @ outcomes.cost[used]


def _chance(cost: Array, singles: Outcomes, line: npt.NDArray[np.int64]) -> Array:
    """(n,) the zero router's part at the mean of these costs, query by query."""
    means = singles.cost[line].mean(axis=1)
    where = float(cost.mean())
    right = int(np.searchsorted(means, where))
    if right == 0 or len(line) == 1:
        return np.asarray(singles.quality[line[0]])
    if right == len(line):
        return np.asarray(singles.quality[line[-1]])
    low, high = line[right - 1], line[right]
    share = (where - means[right - 1]) / (means[right] - means[right - 1])
    quality = (1 - share) * singles.quality[low] + share * singles.quality[high]
    spent = (1 - share) * singles.cost[low] + share * singles.cost[high]
    slope = (singles.quality[high].mean() - singles.quality[low].mean()) / (
        means[right] - means[right - 1]
    )
    return np.asarray(quality + slope * (cost - spent))
