"""How a discrete choice gets a training signal. Imports no level; works at every one of them.

An estimator takes the scores (T, E) and the route chosen from them, and gives the same pairs with
other weights, through which a gradient reaches the scores: `MoE(..., estimator=straight_through)`.
`sparsemixer` chooses and weighs in one, so it is a selection. `leave_one_out`, `imitation`, `focal`
and those of `CascadeLosses` are losses; `sandwich` trains networks of several sizes. `PolyStep` and
`LeastSquaresGate` learn without any gradient.
"""

from pointsman.learn.focal import class_balanced, focal
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
from pointsman.learn.ranking import CascadeLosses, neural_sort, soft_sort, top_q_probability
from pointsman.learn.reinforce import equal_weights, leave_one_out, log_prob_without_replacement
from pointsman.learn.sandwich import sandwich
from pointsman.learn.sparsemixer import sparsemixer
from pointsman.learn.straight_through import rectified_straight_through, straight_through

__all__ = [
    "CascadeLosses",
    "LeastSquaresGate",
    "PolyStep",
    "class_balanced",
    "clipped_surrogate",
    "direct_preference",
    "divergence",
    "equal_weights",
    "focal",
    "generalized_advantages",
    "group_advantages",
    "gumbel_straight_through",
    "imitation",
    "k_means",
    "leave_one_out",
    "log_prob_without_replacement",
    "neural_sort",
    "polytope_step",
    "rectified_straight_through",
    "sandwich",
    "soft_sort",
    "sparsemixer",
    "straight_through",
    "top_q_probability",
]
