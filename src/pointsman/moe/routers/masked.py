"""Which experts a vocabulary id may have.

Legend: T tokens, E experts, V ids of the vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import (
    check_ids,
    check_sizes,
    keeps_tokens,
    promises,
    scored_by,
    step_all,
)

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


class MaskedRouter(Router):
    """Another router's scores, with -inf for the experts that a token's id may not have.

    Every probability and every balancing term then goes over the open experts alone.

    Args:
        router: whose scores are masked.
        eligible_VE: (V, E) bool, fixed; every id needs at least one expert. See `frequency_mask`.

    Raises:
        InputError: a table of another type or shape, or an id without any expert.

    Source: Su et al. 2024, "MaskMoE", arXiv 2407.09816.
    """

    eligible: Tensor

    def __init__(self, router: nn.Module, eligible_VE: Tensor) -> None:
        super().__init__()
        if eligible_VE.dtype != torch.bool or eligible_VE.ndim != 2:
            raise InputError(
                "MaskedRouter needs a bool table of shape (ids, experts), "
                f"got {eligible_VE.dtype} of shape {tuple(eligible_VE.shape)}"
            )
        closed = (~eligible_VE.any(dim=1)).nonzero()
        if len(closed):
            raise InputError(f"every id needs an expert, id {int(closed[0])} may have none")
        self.router = router
        self.register_buffer("eligible", eligible_VE.clone())
        self.guarantee = promises(router)
        self.keeps_tokens = keeps_tokens(router)

    def forward(self, x_TD: Tensor, context: Context) -> Scored:
        """Scores (T, E), -inf where an expert is closed.

        Raises:
            InputError: `context.ids` is missing or no id of the vocabulary, or the inner router
                scores another number of experts.
        """
        (ids_T,) = context.require("ids", reader="MaskedRouter")
        check_ids(ids_T, len(self.eligible), "ids", "MaskedRouter")
        scored = scored_by(self.router, x_TD, context)
        closed_TE = ~self.eligible.index_select(0, ids_T)
        if scored.scores.shape != closed_TE.shape:
            raise InputError(
                f"MaskedRouter has a table for {closed_TE.shape[1]} experts, "
                f"the router scores {scored.scores.shape[1]}"
            )
        # The spread stays: what is chosen among the open experts is as noisy as before.
        clean_TE = None if scored.clean is None else scored.clean.masked_fill(closed_TE, -torch.inf)
        scores_TE = scored.scores.masked_fill(closed_TE, -torch.inf)
        return Scored(scores_TE, clean_TE, scored.spread, scored.state)

    def after_step(self, routings: "Sequence[Routing]") -> None:
        """Passed on to the inner router."""
        step_all([self.router], routings)


def frequency_mask(
    counts_V: Tensor, num_experts: int, *, visible: int, head: float = 0.4, seed: int = 0
) -> Tensor:
    """Table (V, E) bool for `MaskedRouter`: frequent ids see some experts, rare ones exactly one.

    Ids are taken from the most frequent down; each opens the experts that so far expect the least
    load, an id's count being shared by its experts. So one very frequent id with a single expert
    does not overload it, and different seeds give different tables of about equal load.

    Args:
        counts_V: (V,) how often each id occurs, not negative.
        num_experts: E.
        visible: experts of a frequent id, 1 to E.
        head: frequent are the most frequent ids that together hold this share of all occurrences.
            0 makes every id rare (fixed routing), 1 every id that occurs frequent.
        seed: of the order among experts of equal load and ids of equal count.

    Raises:
        InputError: counts of another shape or sign, or a number out of its range.

    Source: Su et al. 2024, "MaskMoE", arXiv 2407.09816, where masks are drawn uniformly; evening
    out the expected load is ours.
    """
    check_sizes("frequency_mask", num_experts=num_experts, visible=visible)
    if visible > num_experts or not 0 <= head <= 1:
        raise InputError(
            f"frequency_mask needs visible of at most {num_experts} and head from 0 to 1, "
            f"got {visible} and {head!r}"
        )
    if counts_V.ndim != 1 or bool((counts_V < 0).any()):
        raise InputError(
            f"counts must be one number of at least 0 for each id, got {tuple(counts_V.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    counts = counts_V.detach().double().cpu()
    shuffled = torch.randperm(len(counts), generator=generator)
    order = shuffled[counts[shuffled].argsort(descending=True, stable=True)]
    before = counts[order].cumsum(0) - counts[order]
    open_ = torch.where((before < head * counts.sum()) & (counts[order] > 0), visible, 1).tolist()
    table_VE = torch.zeros(len(counts), num_experts, dtype=torch.bool)
    load_E = torch.zeros(num_experts, dtype=torch.float64)
    for word, size in zip(order.tolist(), open_, strict=True):
        mixed = torch.randperm(num_experts, generator=generator)
        chosen = mixed[load_E[mixed].argsort(stable=True)[:size]]
        table_VE[word, chosen] = True
        # A rare or unseen id weighs a little too, so that many of them spread over all experts.
        load_E[chosen] += (counts[word] + 1e-6) / size
    return table_VE.to(counts_V.device)
