"""Scores smoothed over the tokens of a sequence, so that tokens alike go to experts alike.

Legend: T tokens, D width, E experts, n sequences, S = R places of a sequence.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import (
    Grid,
    check_sizes,
    keeps_tokens,
    map_scores,
    promises,
    scored_by,
    step_all,
)
from pointsman.select import Guarantee
from pointsman.select.weighing import softmax

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


class SmoothedRouter(Router):
    """Log of p'_i = sum over j of A_ij p_j, with p the probabilities of another router.

    A is row-stochastic over the tokens of one sequence: a learned similarity
    A_ij = softmax over j of x_i W x_j / temperature, or, without a width, the attention of the
    layer below (`context.attention`). Softmax of the scores gives p' back. An expert that the inner
    router closed to a token stays closed to it. Costs S² a sequence; on a GPU the host waits once,
    to learn how many sequences and places there are. A token that is decoded alone sees itself
    alone: what came before it is not kept.

    Args:
        router: whose probabilities are smoothed.
        width: D, for a learned similarity; None reads `context.attention`, rows of places that
            attend to columns, whose rows are divided by their sum over the places taken into
            account (tokens, and if causal the past).
        temperature: of the learned similarity; small ones give the inner router back, large ones
            one and the same choice for a whole sequence.
        causal: leave out later tokens; the guarantee is then causal, if the inner router's is.

    Attributes:
        similarity: (D, D) or None, the identity over sqrt(D) at first.

    Raises:
        InputError: a width below one, or a temperature that is not above 0.

    Source: Nguyen et al. 2025, "Improving routing in sparse mixture of experts with graph of
    tokens", arXiv 2505.00792. Whether probabilities or scores are mixed, and how W starts, was not
    found in the paper's abstract; probabilities and the identity are settled here.
    """

    def __init__(
        self,
        router: nn.Module,
        width: int | None = None,
        *,
        temperature: float = 1.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("SmoothedRouter", width=1 if width is None else width)
        if not 0 < temperature < math.inf:
            raise InputError(f"SmoothedRouter needs a temperature above 0, got {temperature!r}")
        self.router, self.temperature, self.causal = router, temperature, causal
        self.similarity = None if width is None else nn.Parameter(torch.eye(width) * width**-0.5)
        self.guarantee = Guarantee(False, causal and promises(router).causal)
        self.keeps_tokens = keeps_tokens(router)

    def forward(self, x_TD: Tensor, context: Context) -> Scored:
        """Scores (T, E): logarithms of probabilities.

        Raises:
            InputError: `context.attention` is needed and missing, or too small.
        """
        grid = Grid(context, "SmoothedRouter")
        weights_nSR = self._weights(x_TD, context, grid)

        def smooth(scores_TE: Tensor) -> Tensor:
            mixed_TE = grid.take(weights_nSR @ grid.lay_out(softmax(scores_TE)))
            # A probability that underflows is still not the same as a closed expert.
            least = torch.finfo(mixed_TE.dtype).tiny
            return mixed_TE.clamp(min=least).log().masked_fill(scores_TE == -torch.inf, -torch.inf)

        return map_scores(scored_by(self.router, x_TD, context), smooth)

    def after_step(self, routings: "Sequence[Routing]") -> None:
        """Passed on to the inner router."""
        step_all([self.router], routings)

    def _weights(self, x_TD: Tensor, context: Context, grid: Grid) -> Tensor:
        """Who counts how much for whom (n, S, S): rows of tokens sum to one."""
        n, size = grid.shape
        seen_nSR = grid.filled()[:, None, :].expand(n, size, size)
        if self.causal:
            seen_nSR = seen_nSR.tril()
        if self.similarity is None:
            weights_nSR = _attention(context, n, size).to(x_TD.dtype).masked_fill(~seen_nSR, 0.0)
            total_nS1 = weights_nSR.sum(dim=2, keepdim=True)
            return weights_nSR / torch.where(total_nS1 > 0, total_nS1, 1.0)
        x_nSD = grid.lay_out(x_TD)
        alike_nSR = (x_nSD @ self.similarity) @ x_nSD.mT / self.temperature
        nobody_nS1 = ~seen_nSR.any(dim=2, keepdim=True)  # before the first token, under causality
        return alike_nSR.masked_fill(~(seen_nSR | nobody_nS1), -torch.inf).softmax(dim=2)


def _attention(context: Context, n: int, size: int) -> Tensor:
    (attention,) = context.require("attention", reader="SmoothedRouter")
    if attention.ndim != 3 or attention.shape[0] < n or min(attention.shape[1:]) < size:
        raise InputError(
            "SmoothedRouter needs context.attention of shape (sequences, places, places), at least "
            f"{(n, size, size)}, got {tuple(attention.shape)}"
        )
    return attention[:n, :size, :size]
