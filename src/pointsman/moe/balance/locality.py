"""Neighbouring tokens that share experts, so that a short stretch of text needs few of them.

Tokens are neighbours by their place in the flattened input, padding included; so these terms are
the only ones that the order of tokens matters to. Legend: T tokens, E experts, C chunks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pointsman.moe.balance.common import check_length, nothing, places, wide

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


def locality(
    routing: "Routing", layer: "MoE | None" = None, *, length: int, sharpness: float = 100.0
) -> Tensor:
    """Cross-entropy between the soft on/off patterns of a token and of the next one.

    The pattern is sigmoid(sharpness * score), for scores that switch an expert on above 0. Its mean
    is over experts and over pairs of neighbours inside one sequence; pairs with an expert that one
    of the two may not have are left out (the activation locality of BlockFFN, Song et al. 2025,
    arXiv 2507.08771). Gradients reach both tokens.

    Args:
        routing: of one call.
        layer: not read.
        length: places of a sequence, padding included; pairs across its border do not count.
        sharpness: of the sigmoid.

    Raises:
        InputError: a length that does not divide the number of tokens.
    """
    check_length(routing, length, "length")
    scores_TE = wide(routing.scores)
    place_T = places(routing)
    near_T = (place_T[1:] == place_T[:-1] + 1) & (place_T[1:] % length != 0)
    counted_TE = near_T[:, None] & (scores_TE[1:] > -torch.inf) & (scores_TE[:-1] > -torch.inf)
    sharp_TE = sharpness * scores_TE.masked_fill(scores_TE == -torch.inf, 0.0)
    soft_TE, target_TE = sharp_TE[:-1], sharp_TE[1:].sigmoid()
    cross_TE = -target_TE * logsigmoid(soft_TE) - (1 - target_TE) * logsigmoid(-soft_TE)
    mean = (cross_TE * counted_TE).sum() / counted_TE.sum().clamp(min=1)
    return nothing(routing.scores) + mean.to(routing.scores.dtype)


def chunk_sparsity(
    routing: "Routing", layer: "MoE | None" = None, *, chunk: int, eps: float = 1e-5
) -> Tensor:
    """Mean share of experts that a chunk of tokens needs, made smooth.

    Positive scores of a token, divided by their sum, are taken as chances that it uses an expert;
    an expert is spared if no token of the chunk uses it. The mean is over experts and over chunks
    with a token (the chunk sparsification of BlockFFN, Song et al. 2025, arXiv 2507.08771).

    Args:
        routing: of one call.
        layer: not read.
        chunk: places of a chunk, padding included.
        eps: added to sums and inside logarithms.

    Raises:
        InputError: a chunk that does not divide the number of tokens.
    """
    check_length(routing, chunk, "chunk")
    if len(routing.scores) == 0:
        return nothing(routing.scores)
    chunks = -(-max(routing.num_tokens, len(routing.scores)) // chunk)
    chunk_T = places(routing).div(chunk, rounding_mode="floor")
    positive_TE = wide(routing.scores).relu()
    chance_TE = positive_TE / (positive_TE.sum(dim=1, keepdim=True) + eps)
    spared_TE = (1 - chance_TE + eps).log()
    spared_CE = spared_TE.new_zeros(chunks, spared_TE.shape[1]).index_add(0, chunk_T, spared_TE)
    present_C = torch.zeros(chunks, device=chunk_T.device, dtype=torch.bool)
    present_C[chunk_T] = True
    needed_C = (1 - spared_CE.exp()).mean(dim=1) * present_C
    return (needed_C.sum() / present_C.sum()).to(routing.scores.dtype)
