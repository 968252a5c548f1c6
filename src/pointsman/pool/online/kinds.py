"""The bandits by the name under which one is kept inside another."""

from collections.abc import Mapping

from pointsman.pool.online.automaton import RewardInaction
from pointsman.pool.online.bandit import Bandit
from pointsman.pool.online.detection import ChangeDetection
from pointsman.pool.online.discounted import DiscountedThompson, DiscountedUpperConfidence
from pointsman.pool.online.inverse_gap import ChebyshevInverseGap
from pointsman.pool.online.knapsack import Knapsack
from pointsman.pool.online.linear import LinearThompson, LinearUpperConfidence
from pointsman.pool.online.sliding import SlidingWindowUpperConfidence
from pointsman.pool.online.tsallis import TsallisInf

BANDITS: Mapping[str, type[Bandit]] = {
    kind.__name__: kind
    for kind in (
        ChangeDetection,
        ChebyshevInverseGap,
        DiscountedThompson,
        DiscountedUpperConfidence,
        Knapsack,
        LinearThompson,
        LinearUpperConfidence,
        RewardInaction,
        SlidingWindowUpperConfidence,
        TsallisInf,
    )
}
