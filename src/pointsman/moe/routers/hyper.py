"""A linear router whose weights a frozen network makes of a trained embedding.

Legend: T tokens, D width, E experts, H hidden width of the hypernetwork, P width of the embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes
from pointsman.moe.routers.linear import LinearRouter


class HyperRouter(Router):
    """Scores x W' + b with (W, b) = frozen network(e); only the embedding e is trained.

    The policy moves on a surface of P dimensions instead of E · D: between a frozen random router,
    which cannot collapse, and a trained one. The hypernetwork is a set of buffers, drawn once and
    saved with the layer; for inference `fixed` leaves it out.

    Args:
        width: D.
        num_experts: E.
        embedding: P; None means D.
        hidden: H.
        scale: factor on the drawn weights of the last layer; larger makes a sharper router.

    Attributes:
        embedding: (P,), the only parameter.

    Raises:
        InputError: a size below one.

    Source: Do et al. 2023, "HyperRouter", arXiv 2312.07035. There the layers start as torch's
    Linear does, under which scores are small and top-k is nearly random; here they are scaled so
    that features of unit variance give scores of about unit variance.
    """

    first: Tensor
    first_bias: Tensor
    last: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        embedding: int | None = None,
        hidden: int = 256,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        size = width if embedding is None else embedding
        check_sizes(
            "HyperRouter", width=width, num_experts=num_experts, embedding=size, hidden=hidden
        )
        self.embedding = nn.Parameter(torch.randn(size))
        self.register_buffer("first", torch.randn(hidden, size) * (2 / size) ** 0.5)
        self.register_buffer("first_bias", torch.zeros(hidden))
        # One row an expert: D weights and a bias, each a combination of H hidden units.
        last = torch.randn(num_experts, width + 1, hidden) * scale * (hidden * width) ** -0.5
        self.register_buffer("last", last)

    def made(self) -> tuple[Tensor, Tensor]:
        """Weights (E, D) and biases (E,), with gradient to the embedding."""
        hidden_H = functional.linear(self.embedding, self.first, self.first_bias).relu()
        rows_EX = self.last @ hidden_H
        return rows_EX[:, :-1], rows_EX[:, -1]

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E)."""
        weight_ED, bias_E = self.made()
        return functional.linear(x_TD, weight_ED, bias_E)

    @torch.no_grad()
    def fixed(self) -> LinearRouter:
        """A linear router of the same scores, without the hypernetwork."""
        weight_ED, bias_E = self.made()
        router = LinearRouter(weight_ED.shape[1], len(weight_ED), bias=True).to(weight_ED)
        router.load_state_dict({"weight": weight_ED, "bias": bias_E})
        return router
