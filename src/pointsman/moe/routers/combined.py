"""Routers made of routers: group then expert, products of two axes, weighted sums.

Legend: T tokens, E experts, G groups, M experts of a group, A and B experts along two axes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import (
    keeps_tokens,
    log_softmax,
    promises,
    scored_by,
    step_all,
)

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


class TwoLevelRouter(Router):
    """Scores log p_group + log q_expert: first which group, then which expert of it.

    Softmax of the scores is the joint probability p · q. Expert e = g M + m is the m-th of group g.

    Args:
        groups: scores the G groups.
        experts: scores all E = G M experts, which are then compared inside each group.
        shared: `experts` scores M experts instead, and every group takes that same choice.

    Raises:
        InputError: a part that learns after the step, which would see routes over all E experts.

    Source: Jordan and Jacobs 1994, "Hierarchical mixtures of experts and the EM algorithm"; Shazeer
    et al. 2017, arXiv 1701.06538, appendix B, where only experts of the chosen groups are scored.
    Here all are scored and the selection decides.
    """

    def __init__(self, groups: nn.Module, experts: nn.Module, *, shared: bool = False) -> None:
        super().__init__()
        _refuse_learners("TwoLevelRouter", groups, experts)
        self.groups, self.experts, self.shared = groups, experts, shared
        self.guarantee = promises(groups, experts)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E): logarithms of probabilities.

        Raises:
            InputError: experts that the groups do not divide.
        """
        groups = scored_by(self.groups, x_TD, context)
        experts = scored_by(self.experts, x_TD, context)
        scores_TE = self._joint(groups.scores, experts.scores)
        clean_TE = self._joint(_clean(groups), _clean(experts)) if _noisy(groups, experts) else None
        return Scored(scores_TE, clean_TE, state=_state("TwoLevelRouter", groups, experts))

    def _joint(self, groups_TG: Tensor, experts_TE: Tensor) -> Tensor:
        count, groups = experts_TE.shape[1], groups_TG.shape[1]
        if self.shared:
            inside_TGM = experts_TE[:, None, :]
        elif count % groups == 0:
            inside_TGM = experts_TE.reshape(len(experts_TE), groups, count // groups)
        else:
            raise InputError(
                f"TwoLevelRouter needs as many experts in every group, got {count} in {groups} "
                "groups: for one choice shared by all groups use shared=True"
            )
        return (log_softmax(groups_TG)[:, :, None] + log_softmax(inside_TGM)).flatten(1)


class ProductRouter(Router):
    """Scores of E = A B experts as sums of A + B: expert e = a B + b has first_a + second_b.

    Softmax of the scores is the product of the two softmaxes. Two small products replace one of E
    rows; what it gives up is scores that are no such sum.

    Args:
        first: scores the A places of the first axis.
        second: scores the B places of the second.

    Raises:
        InputError: a part that learns after the step, which would see routes over all E experts.

    Source: Lample et al. 2019, "Large memory layers with product keys", arXiv 1907.05242, where
    each axis reads half of a query; give routers that do so for the same.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        _refuse_learners("ProductRouter", first, second)
        self.first, self.second = first, second
        self.guarantee = promises(first, second)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E)."""
        first = scored_by(self.first, x_TD, context)
        second = scored_by(self.second, x_TD, context)
        scores_TE = _outer_sum(first.scores, second.scores)
        clean_TE = _outer_sum(_clean(first), _clean(second)) if _noisy(first, second) else None
        return Scored(scores_TE, clean_TE, state=_state("ProductRouter", first, second))


class SummedRouter(Router):
    """Weighted sum of the scores of several routers, such as a local and a global one.

    Args:
        parts: (weight, router) pairs over the same experts.

    Attributes:
        weights: the numbers; they are not learned and may be set at any time.

    Raises:
        InputError: no part.
    """

    def __init__(self, *parts: tuple[float, nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise InputError("SummedRouter needs at least one (weight, router), got none")
        self.weights = [float(weight) for weight, _ in parts]
        self.routers = nn.ModuleList(router for _, router in parts)
        self.guarantee = promises(*self.routers)
        self.keeps_tokens = keeps_tokens(*self.routers)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E)."""
        parts = [scored_by(router, x_TD, context) for router in self.routers]
        state = _state("SummedRouter", *parts)
        scores_TE = self._sum([part.scores for part in parts])
        if not _noisy(*parts):
            return Scored(scores_TE, state=state)
        # Independent noises add up in their squares.
        squares = [
            (weight * part.spread).square()
            for weight, part in zip(self.weights, parts, strict=True)
            if part.spread is not None
        ]
        spread_TE = torch.stack(squares).sum(dim=0).sqrt() if squares else None
        return Scored(scores_TE, self._sum([_clean(part) for part in parts]), spread_TE, state)

    def after_step(self, routings: "Sequence[Routing]") -> None:
        """Passed on to the parts."""
        step_all(list(self.routers), routings)

    def _sum(self, scores: Sequence[Tensor]) -> Tensor:
        shapes = {tuple(each.shape) for each in scores}
        if len(shapes) > 1:
            raise InputError(f"SummedRouter needs parts of one shape, got {sorted(shapes)}")
        terms = [weight * each for weight, each in zip(self.weights, scores, strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


def _outer_sum(first_TA: Tensor, second_TB: Tensor) -> Tensor:
    return (first_TA[:, :, None] + second_TB[:, None, :]).flatten(1)


def _clean(scored: Scored) -> Tensor:
    return scored.scores if scored.clean is None else scored.clean


def _noisy(*parts: Scored) -> bool:
    return any(part.clean is not None for part in parts)


def _state(reader: str, *parts: Scored) -> Tensor | None:
    states = [part.state for part in parts if part.state is not None]
    if len(states) > 1:
        raise InputError(f"{reader} passes one state on, {len(states)} of its parts gave one")
    return states[0] if states else None


def _refuse_learners(reader: str, *parts: nn.Module) -> None:
    for part in parts:
        if keeps_tokens(part):
            raise InputError(
                f"a part of {reader} may not learn from its tokens after the step, as the routes "
                f"it would see are over all experts: {type(part).__name__} does"
            )
