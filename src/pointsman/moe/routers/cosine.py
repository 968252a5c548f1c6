"""Scores by the angle to one prototype an expert.

Legend: T tokens, D width, P width that prototypes live in, E experts.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes, unit


class CosineRouter(Router):
    """Scores cos(A x, c_e) / temperature: only directions count, not lengths.

    On a sphere of few dimensions tokens are not pulled towards the rows of the router as they are
    under a dot product, which keeps representations from collapsing onto E directions.

    Args:
        width: D.
        num_experts: E.
        dim: P, to which features are projected first; None leaves them as they are.
        temperature: at first; its logarithm is learned.
        learn_temperature: False keeps it.
        center: subtract the mean over the dimensions from features and prototypes, so that the
            cosine is a correlation: the product of two layer norms, divided by P.

    Attributes:
        prototypes: (E, P).
        log_temperature: scalar.

    Raises:
        InputError: a size below one, or a temperature that is not above 0.

    Source: Chi et al. 2022, "On the representation collapse of sparse mixture of experts",
    arXiv 2204.09179, with P = E / 2 and 0.07 there.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        dim: int | None = None,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        center: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("CosineRouter", width=width, num_experts=num_experts, dim=dim or 1)
        if not 0 < temperature < math.inf:
            raise InputError(f"CosineRouter needs a temperature above 0, got {temperature!r}")
        self.center = center
        self.project = None if dim is None else nn.Linear(width, dim, bias=False)
        self.prototypes = nn.Parameter(torch.randn(num_experts, dim or width))
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature
        )

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E), between -1 / temperature and 1 / temperature."""
        x_TP = x_TD if self.project is None else self.project(x_TD)
        prototypes_EP: Tensor = self.prototypes
        if self.center:
            x_TP = x_TP - x_TP.mean(dim=1, keepdim=True)
            prototypes_EP = prototypes_EP - prototypes_EP.mean(dim=1, keepdim=True)
        cosine_TE: Tensor = functional.linear(unit(x_TP), unit(prototypes_EP))
        return cosine_TE * (-self.log_temperature).exp()
