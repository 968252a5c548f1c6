"""Soft merging: one expert, mixed anew for every sequence from the weights of all.

Legend: n sequences, S places of a sequence, T tokens without padding, E experts, D width.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.layer import Routing
from pointsman.moe.routers.common import scored_by
from pointsman.route import Route
from pointsman.select import Guarantee
from pointsman.select.weighing import softmax

FLOOR = 1e-10  # keeps a sequence that lost all its experts from dividing by zero


class SoftMerging(nn.Module):
    """A feed-forward whose weights are the mean of E experts', weighed by a router, per sequence.

    The router reads the mean of a sequence's tokens and gives a softmax p over the experts; every
    parameter of the bank is averaged with p, and the sequence runs through that one expert. So the
    choice is differentiable and costs one expert's products, plus the merging of E sets of
    parameters for each sequence. What is routed is the sequence: the routing has one input each.

    Merging weights is not mixing answers: experts must have learned together from the start.

    Args:
        router: (n, D) → scores (n, E); a `Router` is also given the `Context`.
        experts: a bank whose every parameter stacks one entry an expert, such as
            `FeedForwardExperts`; rows sorted by expert and offsets in, rows out.
        dropout: chance that an expert is left out of a sequence's mean, in training.

    Raises:
        InputError: a parameter of the bank that is not stacked by expert, or a dropout outside
            [0, 1).

    Source: Muqeeth et al. 2023, "Soft merging of experts with adaptive routing", arXiv 2306.03745.
    """

    # The mean over a sequence tells every token of the later ones.
    guarantee = Guarantee(batch_independent=False, causal=False)

    def __init__(self, router: nn.Module, experts: nn.Module, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_experts = int(experts.num_experts)  # type: ignore[arg-type]
        for name, weight in experts.named_parameters():
            if weight.ndim == 0 or len(weight) != self.num_experts:
                raise InputError(
                    "soft merging averages parameters that stack one entry for each of "
                    f"{self.num_experts} experts, got {name} of shape {tuple(weight.shape)}"
                )
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.router, self.experts, self.dropout = router, experts, dropout

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, context: Context | None = None
    ) -> tuple[Tensor, Routing]:
        """Output in the shape of x (..., S, D'), and the routing of its sequences.

        Args:
            x: tokens (..., S, D).
            mask: (..., S) bool, False where there is padding: it counts in no mean, and its output
                is zero. A sequence of padding alone is not among the routed.
            context: what else the router may read, in the leading shape of the sequences (...).

        Raises:
            InputError: an input of fewer than two dimensions, or a mask or context of another
                shape.
            RouteError: scores that cannot be routed.
        """
        x_nSD, mask_nS = _by_sequence(x, mask)
        count_n = mask_nS.sum(dim=1)
        kept = count_n.nonzero().squeeze(1) if mask is not None else None
        total_nD = x_nSD.masked_fill(~mask_nS.unsqueeze(2), 0.0).sum(dim=1)
        mean_nD = total_nD / count_n.clamp(min=1).unsqueeze(1)
        if kept is not None:
            x_nSD, mask_nS, mean_nD = x_nSD[kept], mask_nS[kept], mean_nD[kept]
        about = (context or Context()).of_tokens(x.shape[:-2], kept, x.device)
        scored = scored_by(self.router, mean_nD, about)
        weights_nE = self._dropped(softmax(scored.scores))
        rows_TD = self._run(x_nSD[mask_nS], weights_nE, mask_nS.sum(dim=1))
        y_nSD = rows_TD.new_zeros(*mask_nS.shape, rows_TD.shape[-1])
        y_nSD = y_nSD.index_put((mask_nS,), rows_TD)
        if kept is not None:
            y_nSD = y_nSD.new_zeros(len(count_n), *y_nSD.shape[1:]).index_copy(0, kept, y_nSD)
        clean = scored.scores if scored.clean is None else scored.clean
        everyone = torch.ones_like(weights_nE, dtype=torch.bool)
        route = Route.from_dense(weights_nE, everyone)
        routing = Routing(
            scored.scores, route, clean, scored.spread, kept=kept, num_tokens=len(count_n)
        )
        return y_nSD.reshape(*x.shape[:-1], y_nSD.shape[-1]), routing

    def _dropped(self, weights_nE: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return weights_nE
        stays = torch.rand_like(weights_nE) >= self.dropout
        weights_nE = weights_nE * stays + FLOOR
        return weights_nE / weights_nE.sum(dim=1, keepdim=True)

    def _run(self, rows_TD: Tensor, weights_nE: Tensor, count_n: Tensor) -> Tensor:
        """Each sequence's rows through its own merged expert: a bank of n experts, run as one."""
        merged = {
            name: torch.tensordot(weights_nE.to(weight.dtype), weight, dims=1)
            for name, weight in self.experts.named_parameters()
        }
        offsets = torch.cat([count_n.new_zeros(1), count_n.cumsum(dim=0)])
        if len(weights_nE) == 0:  # no sequence is no expert, which no bank knows
            merged, offsets = {}, offsets.new_zeros(self.num_experts + 1)
        answer: Tensor = functional_call(self.experts, merged, (rows_TD, offsets))
        return answer


def _by_sequence(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(n, S, D) tokens and (n, S) where they are."""
    if x.ndim < 2:
        raise InputError(f"sequences of tokens have shape (..., S, D), got {tuple(x.shape)}")
    sequences, places = x.shape[:-2].numel(), x.shape[-2]
    if mask is None:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
        raise InputError(
            f"the mask must be bool with the shape of the tokens, {tuple(x.shape[:-1])}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return x.reshape(sequences, places, x.shape[-1]), mask.reshape(sequences, places)
