"""How a discrete choice gets a training signal. Imports no level; works at every one of them.

An estimator takes the scores (T, E) and the route chosen from them, and gives the same pairs with
other weights, through which a gradient reaches the scores: `MoE(..., estimator=straight_through)`.
`sparsemixer` chooses and weighs in one, so it is a selection. `leave_one_out` and `imitation` are
losses. `PolyStep` and `LeastSquaresGate` learn without any gradient.
"""

from pointsman.learn.gumbel import gumbel_straight_through
from pointsman.learn.imitation import imitation
from pointsman.learn.least_squares import LeastSquaresGate, k_means
from pointsman.learn.policy_gradient import (
    clipped_surrogate,
    divergence,
    generalized_advantages,
    group_advantages,
)
from pointsman.learn.polystep import PolyStep, polytope_step
from pointsman.learn.preference import direct_preference
from pointsman.learn.reinforce import equal_weights, leave_one_out, log_prob_without_replacement
from pointsman.learn.sparsemixer import sparsemixer
from pointsman.learn.straight_through import rectified_straight_through, straight_through

__all__ = [
    "LeastSquaresGate",
    "PolyStep",
    "clipped_surrogate",
    "direct_preference",
    "divergence",
    "equal_weights",
    "generalized_advantages",
    "group_advantages",
    "gumbel_straight_through",
    "imitation",
    "k_means",
    "leave_one_out",
    "log_prob_without_replacement",
    "polytope_step",
    "rectified_straight_through",
    "sparsemixer",
    "straight_through",
]
