"""How many experts a ReLU route takes: a penalty that adapts, and weights of one size.

Legend: T tokens, N routed pairs, E experts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance.common import nothing, over_processes, wide
from pointsman.route import Route

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing

STRONGEST = 1e6  # a penalty that grew without end would become infinite


class AdaptiveL1(nn.Module):
    """L1 penalty on positive scores whose strength finds the wanted number of experts by itself.

    After a step the strength grows by the factor `growth` if more than k experts a token were
    taken, shrinks by it if fewer. Scores of an expert are weighted by its load over the mean load,
    so that busy experts are thinned out first (Wang et al. 2024, "ReMoE: fully differentiable
    mixture-of-experts with ReLU routing", arXiv 2412.14711, eq. 7 to 9).

    Where we depart: in the paper one strength serves all layers; here each layer has its own, and
    so reaches k by itself. And the strength does not fall below `start`, where it is next to
    nothing: else a long time with too few experts would have to be made up for, step by step,
    before it could act again. Give it the weight 1 in the layer.

    The steps are counted in whole numbers, which no cast of the module changes.

    Args:
        k: experts that a token is to take in the mean, above 0; need not be whole.
        start: strength before the first step, and the least.
        growth: factor of a step, above 1.
        weighted: False penalises all experts alike.

    Raises:
        InputError: a number out of range.
    """

    steps: Tensor

    def __init__(
        self, k: float, *, start: float = 1e-8, growth: float = 1.2, weighted: bool = True
    ) -> None:
        super().__init__()
        if not (0 < k < float("inf") and 0 < start < float("inf") and 1 < growth < float("inf")):
            raise InputError(
                "an adaptive penalty needs k above 0, start above 0 and growth above 1, "
                f"got {k!r}, {start!r} and {growth!r}"
            )
        self.k, self.start, self.growth, self.weighted = k, start, growth, weighted
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def strength(self) -> Tensor:
        """Scalar: what the penalty is multiplied by now."""
        factor = torch.pow(self.growth, self.steps.to(torch.float32))
        return (self.start * factor).clamp(max=STRONGEST)

    def forward(self, routing: "Routing", layer: "MoE | None" = None) -> Tensor:
        """Scalar in the type of the scores: strength times the mean weighted sum of scores."""
        route, scores_TE = routing.route, routing.scores
        if len(scores_TE) == 0:
            return nothing(scores_TE)
        mean_E = wide(scores_TE).relu().mean(dim=0)
        if self.weighted:
            share_E = route.load() * (route.num_branches / (self.k * route.num_inputs))
            mean_E = mean_E * share_E
        return (self.strength * mean_E.sum()).to(scores_TE.dtype)

    @torch.no_grad()
    def after_step(self, routings: Sequence["Routing"]) -> None:
        """Move the strength by one factor, by the pairs of all these routings together."""
        counts = self.steps.new_tensor(
            [
                sum(len(routing.route) for routing in routings),
                sum(routing.route.num_inputs for routing in routings),
            ]
        )
        pairs, tokens = over_processes(counts)
        self.steps += torch.sign(pairs.double() - self.k * tokens.double()).long()
        self.steps.clamp_(min=0)

    def extra_repr(self) -> str:
        """What it aims at, for printing."""
        return f"k={self.k}, start={self.start}, growth={self.growth}, weighted={self.weighted}"


class NormedWeights(nn.Module):
    """Reweighs a route by the positive scores of each token, brought to a root mean square of 1.

    Weights are relu(scores) / rms(relu(scores)) times a learned gain, the root mean square being
    over all experts. So what presses the scores towards zero changes which experts are taken, and
    not how loud those that are left answer. Takes the place of an estimator in the layer (the
    router of BlockFFN, Song et al. 2025, arXiv 2507.08771).

    Args:
        num_experts: E.
        eps: added to the mean square, above 0.

    Raises:
        InputError: no expert, or an eps that is not above 0.
    """

    def __init__(self, num_experts: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        if num_experts < 1 or not eps > 0:
            raise InputError(
                f"normed weights need an expert and an eps above 0, got {num_experts} and {eps!r}"
            )
        self.eps = eps
        self.gain_E = nn.Parameter(torch.ones(num_experts))

    def forward(self, scores_TE: Tensor, route: Route) -> Route:
        """The same pairs under normed weights, in the type that scores and gain have together."""
        normed_TE = torch.rms_norm(scores_TE.relu(), scores_TE.shape[1:], None, self.eps)
        weights_TE = normed_TE * self.gain_E
        return route.weighted(weights_TE[route.inputs, route.branches])
