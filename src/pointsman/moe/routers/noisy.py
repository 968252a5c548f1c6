"""Linear scores under learned Gaussian noise. Legend: T tokens, D width, E experts."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import check_sizes


class NoisyRouter(Router):
    """Scores x W' + noise · softplus(x V'), with noise in training only.

    Both matrices start at zero: every expert is equally likely at first, under noise of standard
    deviation softplus(0) = 0.69. What was added is returned as `clean` and `spread`, from which the
    load loss computes how likely each expert was to be chosen.

    Args:
        width: D.
        num_experts: E.

    Raises:
        InputError: a size below one.

    Source: Shazeer et al. 2017, arXiv 1701.06538, eq. 4. The noise is drawn from torch's global
    generator, which activation checkpointing restores when it computes a layer again.
    """

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        check_sizes("NoisyRouter", width=width, num_experts=num_experts)
        self.weight = nn.Parameter(torch.zeros(num_experts, width))
        self.noise_weight = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores, clean scores and standard deviation of the noise, each (T, E)."""
        clean_TE = functional.linear(x_TD, self.weight)
        spread_TE = functional.softplus(functional.linear(x_TD, self.noise_weight))
        if not self.training:
            return Scored(clean_TE, clean_TE, spread_TE)
        return Scored(clean_TE + torch.randn_like(clean_TE) * spread_TE, clean_TE, spread_TE)
