"""Balancing terms: losses that keep a router from sending everything to a few experts."""

import torch
from torch import Tensor

from pointsman.route import Route


def switch_balance(scores_TE: Tensor, route: Route) -> Tensor:
    """Load-balancing loss: E times the dot product of load shares and mean probabilities.

    1 when both are uniform, up to E when everything goes to one expert. The load has no gradient;
    the probabilities do (Fedus et al. 2021, arXiv 2101.03961, eq. 4).

    Args:
        scores_TE: the router's scores (T, E), before any normalisation.
        route: what was selected from them.

    Returns:
        A scalar, 0 for an empty batch.
    """
    if len(route) == 0:
        return scores_TE.sum() * 0.0
    probability_E = torch.softmax(scores_TE, dim=1).mean(dim=0)
    share_E = route.load().to(scores_TE.dtype) / len(route)
    return route.num_branches * (share_E * probability_E).sum()
