"""The routed layer: decide (router, select), move (route), compute (experts), account (routing)."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from pointsman.route import Route

# Shape letters: T tokens, E experts, D width.

Select = Callable[[Tensor], Route]


@dataclass(frozen=True)
class Routing:
    """What the router said (T, E) and what was selected from it, for losses and for inspection."""

    scores: Tensor
    route: Route


class MoE(nn.Module):
    """Mixture of experts: every token runs only the experts that its route names.

    Args:
        router: (T, D) → scores (T, E).
        select: scores → `Route`, such as `partial(top_k, k=2)`.
        experts: rows sorted by expert (N, D) and offsets (E + 1,) → rows (N, D).

    Source: Shazeer et al. 2017, arXiv 1701.06538.
    """

    def __init__(self, router: nn.Module, select: Select, experts: nn.Module) -> None:
        super().__init__()
        self.router, self.select, self.experts = router, select, experts

    def forward(self, x: Tensor, select: Select | None = None) -> tuple[Tensor, Routing]:
        """Output of the shape of x (..., D), and the routing of its flattened tokens.

        Args:
            x: tokens; all dimensions but the last are flattened for routing.
            select: another selection for this call, such as fewer experts a token.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        scores_TE = self.router(x_TD)
        route = (select or self.select)(scores_TE)
        rows = self.experts(route.dispatch(x_TD), route.by_branch().offsets)
        return route.combine(rows).reshape(x.shape), Routing(scores_TE, route)
