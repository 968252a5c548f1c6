"""Balancing by the coefficient of variation, of gate values and of smooth loads.

Legend: T tokens, E experts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.balance.common import nothing, squared_variation, wide

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


def importance(routing: "Routing", layer: "MoE | None" = None) -> Tensor:
    """Squared coefficient of variation of the sums of gate values: 0 when all are equal.

    Gate values are the weights of the route, so that an expert counts as much as it is listened to
    (Shazeer et al. 2017, arXiv 1701.06538, eq. 6 and 7).

    Args:
        routing: of one call.
        layer: not read.
    """
    route, scores_TE = routing.route, routing.scores
    if len(route) == 0:
        return nothing(scores_TE)
    weights_N = wide(route.weights)
    amount_E = weights_N.new_zeros(route.num_branches).index_add(0, route.branches, weights_N)
    return squared_variation(amount_E).to(scores_TE.dtype)


def load(routing: "Routing", layer: "MoE | None" = None) -> Tensor:
    """Squared coefficient of variation of the loads, made smooth by the router's noise.

    A token counts for an expert as much as it is likely to have it under another draw of that
    expert's noise (Shazeer et al. 2017, arXiv 1701.06538, eq. 8 to 11). Made for routers with noise
    and a selection of the k best scores; k may differ from token to token.

    Args:
        routing: of one call; `clean` and `spread` are read.
        layer: not read.

    Raises:
        InputError: the router gives no spread.
    """
    scores_TE = routing.scores
    chances_TE = chances(routing)
    if len(scores_TE) == 0:
        return nothing(scores_TE)
    return squared_variation(chances_TE.sum(dim=0)).to(scores_TE.dtype)


def chances(routing: "Routing") -> Tensor:
    """(T, E) probability that an expert is among the k best when its noise alone is redrawn.

    Computed in float32 or better. 0 for an expert of score -inf and for tokens without expert, 1
    where all experts are taken.

    Raises:
        InputError: the router gives no spread.
    """
    if routing.spread is None:
        raise InputError(
            "`load` reads the spread of the router's noise, and this router gives none: "
            "use NoisyRouter, or `importance` alone"
        )
    scores_TE, clean_TE = wide(routing.scores), wide(routing.clean)
    spread_TE = wide(routing.spread).clamp(min=torch.finfo(torch.float32).eps)
    bar_TE, taken_T1 = _bar_without(scores_TE, routing.route.branches_per_input())
    possible_TE = (scores_TE > -torch.inf) & (clean_TE > -torch.inf) & (taken_T1 > 0)
    # Infinite differences are kept out of the cdf, whose gradient there would be 0 * inf.
    open_TE = bar_TE == -torch.inf
    margin_TE = clean_TE.masked_fill(~possible_TE, 0) - bar_TE.masked_fill(open_TE, 0)
    chance_TE: Tensor = torch.special.ndtr(margin_TE / spread_TE)
    return chance_TE.masked_fill(open_TE, 1.0).masked_fill(~possible_TE, 0.0)


def _bar_without(scores_TE: Tensor, k_T: Tensor) -> tuple[Tensor, Tensor]:
    """(T, E) the k-th best score among the other experts, -inf where there are fewer, and k."""
    best_TE = scores_TE.sort(dim=1, descending=True).values
    best_TE = torch.cat([best_TE, best_TE.new_full((len(best_TE), 1), -torch.inf)], dim=1)
    k_T1 = k_T[:, None]
    next_T1 = best_TE.gather(1, k_T1)
    last_T1 = best_TE.gather(1, (k_T1 - 1).clamp(min=0))
    return torch.where(scores_TE > next_T1, next_T1, last_T1), k_T1
