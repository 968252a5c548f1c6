"""Terms on the scores alone: how large they are, how sure they are. Legend: T tokens, E experts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointsman.moe.balance.common import nothing, wide
from pointsman.select.weighing import softmax

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


def router_z(routing: "Routing", layer: "MoE | None" = None) -> Tensor:
    """Mean squared log-sum-exp of the scores: keeps them small, so that rounding harms less.

    Read from the scores before noise (Zoph et al. 2022, "ST-MoE", arXiv 2202.08906, eq. 5). Tokens
    without any eligible expert add nothing.

    Args:
        routing: of one call.
        layer: not read.
    """
    clean_TE = routing.clean
    if len(clean_TE) == 0:
        return nothing(routing.scores)
    nowhere_T1 = (clean_TE == -torch.inf).all(dim=1, keepdim=True)
    size_T = wide(clean_TE).masked_fill(nowhere_T1, 0.0).logsumexp(dim=1)
    size_T = size_T.masked_fill(nowhere_T1.squeeze(1), 0.0)
    return size_T.square().mean().to(routing.scores.dtype)


def entropy(routing: "Routing", layer: "MoE | None" = None, *, sure: float = 1.0) -> Tensor:
    """Mean entropy of the tokens' probabilities minus the entropy of their mean, in nats.

    With `sure` 1 this is minus the mutual information of token and expert: lowest, -log(E), when
    each token is sure of its expert and all experts are wanted equally; 0 when all tokens want the
    same (Chen et al. 2022, "Mod-Squad", arXiv 2212.08066, in place of their task the token).

    Args:
        routing: of one call.
        layer: not read.
        sure: weight of the first entropy; 0 balances and leaves each token as unsure as it is.
    """
    if len(routing.scores) == 0:
        return nothing(routing.scores)
    share_TE = softmax(wide(routing.scores))
    balance = _entropy(share_TE.mean(dim=0))
    return (sure * _entropy(share_TE).mean() - balance).to(routing.scores.dtype)


def _entropy(share: Tensor) -> Tensor:
    # The logarithm of a harmless 1 instead of 0 keeps the gradient finite.
    return -(share * torch.where(share > 0, share, 1.0).log()).sum(dim=-1)
