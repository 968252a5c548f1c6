"""Scores by attention between the experts. Legend: T tokens, D width, E = F experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes


class AttentionRouter(Router):
    """Scores P v with P_ef = softmax over f of q_e k_f, from three numbers an expert and token.

    A score depends on what the token says of all experts, not of its own alone. Every score lies
    between the least and the greatest v. It costs E² a token.

    Args:
        width: D.
        num_experts: E.
        std: standard deviation of the weights at first; None means 1 / sqrt(D). With much smaller
            ones q is near 0, P uniform, and all scores of a token tie at the mean of v.

    Attributes:
        weight: (3 E, D): rows of q, then of k, then of v.

    Raises:
        InputError: a size below one.

    Source: Wu et al. 2024, "Yuan 2.0-M32", arXiv 2405.17976.
    """

    def __init__(self, width: int, num_experts: int, *, std: float | None = None) -> None:
        super().__init__()
        check_sizes("AttentionRouter", width=width, num_experts=num_experts)
        std = width**-0.5 if std is None else std
        self.weight = nn.Parameter(torch.randn(3 * num_experts, width) * std)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E)."""
        q_TE, k_TF, v_TF = functional.linear(x_TD, self.weight).chunk(3, dim=1)
        p_TEF = (q_TE[:, :, None] * k_TF[:, None, :]).softmax(dim=2)
        return (p_TEF @ v_TF[:, :, None]).squeeze(2)
