"""Balancing by loads and mean probabilities, over experts, groups of experts, or each sequence.

Every term takes the `Routing` of one layer and the layer, and returns a scalar in the type of the
scores, 0 for an empty batch. Legend: T tokens, N routed pairs, E experts, G groups, S sequences.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.balance.common import check_length, nothing, places, wide
from pointsman.select.weighing import softmax

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


def switch(routing: "Routing", layer: "MoE | None" = None) -> Tensor:
    """Load-balancing loss: E times the dot product of load shares and mean probabilities.

    1 when both are uniform, up to E when everything goes to one expert. The load has no gradient;
    the probabilities do (Fedus et al. 2021, arXiv 2101.03961, eq. 4).

    Args:
        routing: of one call.
        layer: not read.
    """
    route, scores_TE = routing.route, routing.scores
    if len(route) == 0:
        return nothing(scores_TE)
    probability_E = softmax(wide(scores_TE)).mean(dim=0)
    share_E = route.load() / len(route)
    return (route.num_branches * (share_E * probability_E).sum()).to(scores_TE.dtype)


def grouped_switch(
    routing: "Routing", layer: "MoE | None" = None, *, group_of: Sequence[int]
) -> Tensor:
    """The switch loss over groups of experts, such as those of one device: 1 when equal, up to G.

    What a group receives is the pairs of all its experts, and its probability is the sum of
    theirs (the device-level balance of Dai et al. 2024, arXiv 2401.06066).

    Args:
        routing: of one call.
        layer: not read.
        group_of: (E,) the group of each expert, from 0: [0, 0, 1, 1] balances two halves,
            [0, 1, 0, 1] what lies at the same place in each.

    Raises:
        InputError: not one group for each expert, or a group below 0.
    """
    route, scores_TE = routing.route, routing.scores
    if len(group_of) != route.num_branches or min(group_of, default=0) < 0:
        raise InputError(
            f"group_of needs one group of at least 0 for each of {route.num_branches} experts, "
            f"got {list(group_of)}"
        )
    if len(route) == 0:
        return nothing(scores_TE)
    group_E = torch.as_tensor(group_of, device=scores_TE.device)
    groups = len(set(group_of))
    probability_E = softmax(wide(scores_TE)).mean(dim=0)
    zeros_G = probability_E.new_zeros(max(group_of) + 1)
    probability_G = zeros_G.index_add(0, group_E, probability_E)
    share_G = zeros_G.index_add(0, group_E, (route.load() / len(route)).to(zeros_G.dtype))
    return (groups * (share_G * probability_G).sum()).to(scores_TE.dtype)


def sequence_switch(routing: "Routing", layer: "MoE | None" = None, *, length: int) -> Tensor:
    """The switch loss of each sequence by itself, in the mean over sequences with a token.

    A batch can be balanced although each of its sequences overloads a few experts, which is what
    a server meets (DeepSeek-AI 2024, arXiv 2412.19437). Here probabilities are the softmax.

    Args:
        routing: of one call.
        layer: not read.
        length: places of a sequence, padding included.

    Raises:
        InputError: a length that does not divide the number of tokens.
    """
    check_length(routing, length, "length")
    route, scores_TE = routing.route, routing.scores
    if len(route) == 0:
        return nothing(scores_TE)
    sequence_T = places(routing).div(length, rounding_mode="floor")
    sequences = -(-max(routing.num_tokens, len(scores_TE)) // length)
    probability_TE = softmax(wide(scores_TE))
    total_SE = probability_TE.new_zeros(sequences, route.num_branches)
    tokens_S1 = total_SE[:, :1].index_add(0, sequence_T, torch.ones_like(probability_TE[:, :1]))
    mean_SE = total_SE.index_add(0, sequence_T, probability_TE) / tokens_S1.clamp(min=1)
    pair_N = sequence_T[route.inputs] * route.num_branches + route.branches
    load_SE = total_SE.flatten().index_add(0, pair_N, torch.ones_like(pair_N, dtype=total_SE.dtype))
    load_SE = load_SE.view_as(total_SE)
    share_SE = load_SE / load_SE.sum(dim=1, keepdim=True).clamp(min=1)
    each_S = route.num_branches * (share_SE * mean_SE).sum(dim=1)
    return (each_S.sum() / (tokens_S1 > 0).sum()).to(scores_TE.dtype)
