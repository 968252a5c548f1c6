"""Balancing terms: losses that keep a router from sending everything to a few experts.

Every term takes the `Routing` of one layer and the layer, and returns a scalar, 0 for an empty
batch. Legend: T tokens, E experts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


def switch(routing: "Routing", layer: "MoE | None" = None) -> Tensor:
    """Load-balancing loss: E times the dot product of load shares and mean probabilities.

    1 when both are uniform, up to E when everything goes to one expert. The load has no gradient;
    the probabilities do (Fedus et al. 2021, arXiv 2101.03961, eq. 4).
    """
    route, scores_TE = routing.route, routing.scores
    if len(route) == 0:
        return scores_TE.sum() * 0.0
    probability_E = torch.softmax(scores_TE, dim=1).mean(dim=0)
    share_E = route.load().to(scores_TE.dtype) / len(route)
    return route.num_branches * (share_E * probability_E).sum()
