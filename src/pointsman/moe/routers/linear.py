"""Scores by dot products with one learned row an expert. Legend: T tokens, D width, E experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes


class LinearRouter(Router):
    """Scores x W' + b, of normalised features if asked.

    It differs from `nn.Linear` in what starts a router well: no bias and small rows by default, so
    that routing is nearly uniform at first, and features that can be normalised, so that scores do
    not grow with the residual stream.

    Args:
        width: D.
        num_experts: E.
        bias: one learned number an expert, 0 at first.
        normalize: subtract the mean of a token's features and divide by their standard deviation.
        std: standard deviation of the rows at first; None means 1 / sqrt(D), under which features
            of unit variance give scores of unit variance.

    Attributes:
        weight: (E, D), named as in `nn.Linear`.
        bias: (E,) or None.

    Raises:
        InputError: a size below one.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 2 (without bias or normalisation).
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        bias: bool = False,
        normalize: bool = False,
        std: float | None = None,
    ) -> None:
        super().__init__()
        check_sizes("LinearRouter", width=width, num_experts=num_experts)
        self.normalize = normalize
        std = width**-0.5 if std is None else std
        self.weight = nn.Parameter(torch.randn(num_experts, width) * std)
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E)."""
        if self.normalize:
            x_TD = functional.layer_norm(x_TD, x_TD.shape[-1:])
        return functional.linear(x_TD, self.weight, self.bias)
