"""Scores by the angle to a running mean of an expert's own tokens.

Legend: T tokens, D width, E experts, N routed pairs.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_sizes, unit

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


class KMeansRouter(Router):
    """Scores cos(x, c_e) / temperature, where c_e follows the tokens that expert e received.

    Nothing is learned by gradient. After a step, an expert's centroid moves towards the mean
    direction of the tokens routed to it; an expert without tokens keeps its centroid. Tokens are
    normalised first, so that long ones do not pull more. Gradients reach the tokens through the
    cosine if asked.

    In half precision small steps of a centroid are lost to rounding: keep the router in float32 and
    give the layer `router_dtype=torch.float32`. Of several processes each follows its own tokens:
    average the buffers between them.

    Args:
        width: D.
        num_experts: E.
        temperature: of the scores; softmax over them gives the weights of the chosen experts.
        momentum: share of the old centroid that is kept at a step, in [0, 1).
        revive_after: an expert without tokens for so many steps is moved onto the token that its
            own expert serves worst. None leaves it where it is.
        through_tokens: let gradients flow from the scores to the tokens.

    Attributes:
        centroids: (E, D) buffer, random unit vectors at first; see `start_from`.
        idle: (E,) int64 buffer, steps since an expert last received a token.

    Raises:
        InputError: a size below one, or a number out of its range.

    Source: Ahrac et al. 2026, "Routers learn the geometry of their experts", arXiv 2605.12476. The
    paper's averaging rule, temperature, start and treatment of empty experts were not found; all
    four are settled here as above.
    """

    keeps_tokens = True
    centroids: Tensor
    idle: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        temperature: float = 0.1,
        momentum: float = 0.95,
        revive_after: int | None = None,
        through_tokens: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(
            "KMeansRouter", width=width, num_experts=num_experts, revive_after=revive_after or 1
        )
        if not 0 < temperature < math.inf or not 0 <= momentum < 1:
            raise InputError(
                "KMeansRouter needs a temperature above 0 and a momentum from 0 to below 1, "
                f"got {temperature!r} and {momentum!r}"
            )
        self.temperature, self.momentum = temperature, momentum
        self.revive_after, self.through_tokens = revive_after, through_tokens
        self.register_buffer("centroids", unit(torch.randn(num_experts, width)))
        self.register_buffer("idle", torch.zeros(num_experts, dtype=torch.int64))

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Tensor:
        """Scores (T, E), between -1 / temperature and 1 / temperature."""
        x_TD = x_TD if self.through_tokens else x_TD.detach()
        return unit(x_TD) @ unit(self.centroids).T / self.temperature

    @torch.no_grad()
    def start_from(self, x_TD: Tensor) -> None:
        """Put the centroids onto E of these tokens, each the one farthest from those before.

        Tokens that share a large mean are all close to one random direction, and one expert would
        get them all: call this with tokens of a first batch instead.

        Raises:
            InputError: fewer tokens than experts, or of another width.
        """
        num_experts, width = self.centroids.shape
        if x_TD.ndim != 2 or x_TD.shape[1] != width or len(x_TD) < num_experts:
            raise InputError(
                f"centroids start from at least {num_experts} tokens of width {width}, "
                f"got {tuple(x_TD.shape)}"
            )
        directions = unit(x_TD.to(self.centroids))
        chosen = [int((directions @ directions.mean(dim=0)).argmax())]
        nearest_T = directions @ directions[chosen[0]]
        while len(chosen) < num_experts:
            nearest_T[chosen[-1]] = torch.inf  # never twice
            chosen.append(int(nearest_T.argmin()))
            nearest_T = torch.maximum(nearest_T, directions @ directions[chosen[-1]])
        self.centroids.copy_(directions[chosen])

    @torch.no_grad()
    def after_step(self, routings: "Sequence[Routing]") -> None:
        """Move the centroids towards what their experts received, in training mode only.

        Raises:
            InputError: a routing that did not keep its tokens, so not of a layer of this router.
        """
        if not self.training or not routings:
            return
        total_ED = torch.zeros_like(self.centroids)
        count_E = self.idle.new_zeros(len(self.idle))
        for routing in routings:
            if routing.tokens is None:
                raise InputError(
                    "KMeansRouter learns from Routing.tokens, which this routing has not kept: "
                    "give after_step the routings of its own layer"
                )
            route = routing.route
            directions = unit(routing.tokens.to(total_ED))
            total_ED.index_add_(0, route.branches, directions.index_select(0, route.inputs))
            count_E += route.load()
        got_E = count_E > 0
        mean_ED = total_ED / count_E.clamp(min=1)[:, None]
        moved_ED = self.momentum * self.centroids + (1 - self.momentum) * mean_ED
        self.centroids.copy_(torch.where(got_E[:, None], moved_ED, self.centroids))
        self.idle.add_(1).masked_fill_(got_E, 0)
        self._revive(routings)

    def _revive(self, routings: "Sequence[Routing]") -> None:
        if self.revive_after is None:
            return
        idle = (self.idle >= self.revive_after).nonzero().squeeze(1)
        tokens = torch.cat([r.tokens for r in routings if r.tokens is not None])
        directions = unit(tokens.to(self.centroids))
        if len(idle) == 0 or len(directions) == 0:
            return
        served_T = (directions @ unit(self.centroids).T).amax(dim=1)
        worst = served_T.topk(min(len(idle), len(served_T)), largest=False).indices
        idle = idle[: len(worst)]
        self.centroids.index_copy_(0, idle, directions[worst])
        self.idle.index_fill_(0, idle, 0)
