"""A gate made of Kolmogorov-Arnold layers: learned functions on the edges of a network.

Legend: T tokens (any leading shape), I inputs, O outputs, G basis functions of an edge, D width,
E experts, H hidden width.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes


class KANLayer(nn.Module):
    """Output o is the sum over inputs i of w_oi act(x_i) + sum over g of c_oig B_g(x_i).

    The B_g are B-splines on an even grid: they sum to one inside it and vanish some steps outside,
    where the base term alone goes on.

    Args:
        inputs: I.
        outputs: O.
        grid: steps of the grid, at least one.
        order: of the splines, 3 is cubic.
        low: where the grid begins.
        high: where it ends.
        activation: of the base term, elementwise.

    Attributes:
        base: (O, I).
        coefficients: (O, I, G), with G = grid + order; small at first.

    Raises:
        InputError: a size below one, a negative order, or an empty grid.

    Source: Liu et al. 2024, "KAN: Kolmogorov-Arnold networks", arXiv 2404.19756, without the
    scales of an edge and without refining the grid.
    """

    knots: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        grid: int = 5,
        order: int = 3,
        low: float = -1.0,
        high: float = 1.0,
        activation: Callable[[Tensor], Tensor] = functional.silu,
    ) -> None:
        super().__init__()
        check_sizes("KANLayer", inputs=inputs, outputs=outputs, grid=grid)
        if order < 0 or not -math.inf < low < high < math.inf:
            raise InputError(
                "KANLayer needs an order of at least 0 and a grid from low to high, "
                f"got {order}, {low} and {high}"
            )
        self.order, self.activation = order, activation
        self.base = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.coefficients = nn.Parameter(
            torch.randn(outputs, inputs, grid + order) * 0.1 * inputs**-0.5
        )
        step = (high - low) / grid
        self.register_buffer("knots", torch.arange(-order, grid + order + 1) * step + low)

    def basis(self, x: Tensor) -> Tensor:
        """(...,) → (..., G): value of every spline at x, by de Boor's recursion."""
        x = x[..., None]
        knots = self.knots
        values = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
        for order in range(1, self.order + 1):
            rising = (x - knots[: -order - 1]) / (knots[order:-1] - knots[: -order - 1])
            falling = (knots[order + 1 :] - x) / (knots[order + 1 :] - knots[1:-order])
            values = rising * values[..., :-1] + falling * values[..., 1:]
        return values

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) → (..., O)."""
        based: Tensor = functional.linear(self.activation(x), self.base)
        return based + functional.linear(self.basis(x).flatten(-2), self.coefficients.flatten(1))


class KANRouter(Router):
    """Scores of a gated residual network with Kolmogorov-Arnold layers inside (GRKAN).

    With u = ReLU(enter x) and h = inner(u): scores = LayerNorm(skip u + a h · sigmoid(b h)). The
    paper's gate is sigmoid of the scores, which is the selection's `weigh`: weights that need not
    sum to one, of all experts in the paper, of the chosen ones under `top_k`.

    Args:
        width: D.
        num_experts: E.
        hidden: H of the first layer, as wide as an expert's output in the paper; None means D.
        dropout: on h, in training.
        inner: H → E, what computes h; None means two KAN layers, the first with ELU as base.
            Linear, ELU, Linear makes it the usual gated residual network.

    Raises:
        InputError: a size below one.

    Source: Inzirillo and Genet 2024, "A gated residual Kolmogorov-Arnold networks for mixtures of
    experts", arXiv 2409.15161.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        hidden: int | None = None,
        dropout: float = 0.1,
        inner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        size = width if hidden is None else hidden
        check_sizes("KANRouter", width=width, num_experts=num_experts, hidden=size)
        self.enter = nn.Linear(width, size)
        self.skip = nn.Linear(size, num_experts)
        self.inner = inner or nn.Sequential(
            KANLayer(size, num_experts, activation=functional.elu),
            KANLayer(num_experts, num_experts),
        )
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Linear(num_experts, num_experts)
        self.gate = nn.Linear(num_experts, num_experts)
        self.norm = nn.LayerNorm(num_experts)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E)."""
        u_TH = functional.relu(self.enter(x_TD))
        h_TE = self.dropout(self.inner(u_TH))
        scores_TE: Tensor = self.norm(
            self.skip(u_TH) + self.value(h_TE) * self.gate(h_TE).sigmoid()
        )
        return scores_TE
