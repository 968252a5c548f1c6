"""Competition: experts answer all, the strongest answers win, and a cheap router learns to foresee.

Legend: T tokens, E experts, D width, K experts of a token, N routed pairs.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.learn import imitation
from pointsman.moe.balance.common import nothing
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import keeps_tokens, promises, scored_by, step_all
from pointsman.route import Route
from pointsman.select import Guarantee

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing


class CompetingRouter(Router):
    """A router whose scores, on competition steps, are how strongly each expert answers.

    Then every expert runs on every token, and its affinity is the mean of softplus over its answer.
    The scores are the logarithms of the affinities: so the k best are chosen by affinity, and
    weights that a softmax over the chosen gives are affinities divided by their sum. The cheap
    router's own scores go along as `Routing.clean`, and learn by `foresight`. On all other steps,
    and in evaluation, the cheap router decides alone.

    The experts of the layer are read, not owned: they are saved with the layer only. They run twice
    on a competition step, once to compete and once, the winners, to answer.

    Args:
        router: the cheap one: (T, D) → (T, E), or a `Router`.
        experts: the bank of the layer; rows sorted by expert and offsets in, rows out.

    Attributes:
        competing: whether the next training steps are competition steps; set by hand or by a
            `CompetitionSchedule`.

    Source: Nguyen et al. 2025, "CompeteSMoE", arXiv 2505.13380.
    """

    def __init__(self, router: nn.Module, experts: nn.Module) -> None:
        super().__init__()
        self.router = router
        self._experts = (experts,)  # in a tuple, a module is no part of this one
        self.competing = False

    @property
    def guarantee(self) -> Guarantee:  # type: ignore[override]
        """That of the cheap router: a competition is each token's own."""
        return promises(self.router)

    @property
    def keeps_tokens(self) -> bool:  # type: ignore[override]
        """On competition steps, for `diversity`; and where the cheap router asks for it."""
        return self.in_competition or keeps_tokens(self.router)

    @property
    def in_competition(self) -> bool:
        """Whether a call now is a competition."""
        return self.competing and self.training

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E): of the cheap router, or the logarithms of the affinities."""
        scored = scored_by(self.router, x_TD, context)
        if not self.in_competition:
            return scored
        clean = scored.scores if scored.clean is None else scored.clean
        return Scored(self.affinity(x_TD).log(), clean, scored.spread, scored.state)

    def affinity(self, x_TD: Tensor) -> Tensor:
        """(T, E) how strongly each expert answers each token: its mean softplus, above zero."""
        answers_TED = every_answer(self._experts[0], x_TD)
        strength_TE = functional.softplus(answers_TED.flatten(2)).mean(dim=2).to(x_TD.dtype)
        return strength_TE.clamp(min=torch.finfo(x_TD.dtype).tiny)

    def after_step(self, routings: "Sequence[Routing]") -> None:
        """What the cheap router learns outside of autograd, if anything."""
        step_all([self.router], routings)


class CompetitionSchedule:
    """Decides before every step which layers compete in it.

    Each layer is drawn with chance `share`; where more than `at_most` would compete in one step,
    those that came last wait for the next steps.

    Args:
        routers: of the layers, in their order.
        share: chance of a layer at a step, from 0 to 1.
        at_most: layers in one step, at least 1.
        warm_up: steps at the start without competition.
        generator: of the draws, on the CPU; None means torch's global one.

    Raises:
        InputError: a number out of range.

    Source: Nguyen et al. 2025, arXiv 2505.13380; the defaults are those of its language models.
    """

    def __init__(
        self,
        routers: Sequence[CompetingRouter],
        *,
        share: float = 0.07,
        at_most: int = 3,
        warm_up: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 <= share <= 1 or at_most < 1 or warm_up < 0:
            raise InputError(
                "a schedule needs a share from 0 to 1, at_most of at least 1 and warm_up of at "
                f"least 0, got {share!r}, {at_most!r} and {warm_up!r}"
            )
        self.routers, self.share, self.at_most = list(routers), share, at_most
        self.warm_up, self.generator = warm_up, generator
        self._steps = 0
        self._waiting: deque[CompetingRouter] = deque()

    def step(self) -> int:
        """Call it before each training step; gives the number of layers that compete in it."""
        self._steps += 1
        for router in self.routers:
            router.competing = False
        if self._steps <= self.warm_up:
            return 0
        drawn = torch.rand(len(self.routers), generator=self.generator) < self.share
        for router, called in zip(self.routers, drawn.tolist(), strict=True):
            if called and router not in self._waiting:
                self._waiting.append(router)
        count = min(self.at_most, len(self._waiting))
        for _ in range(count):
            self._waiting.popleft().competing = True
        return count


def every_answer(experts: nn.Module, x_TD: Tensor) -> Tensor:
    """(T, E, ...) what each expert of a bank answers to each token.

    Args:
        experts: rows sorted by expert and offsets in, rows out; with `num_experts`.
        x_TD: (T, ...) tokens; the type of the bank is taken if it has weights.
    """
    num_experts = int(experts.num_experts)  # type: ignore[arg-type]
    weight = next(experts.parameters(), x_TD)
    every_TE = torch.ones(len(x_TD), num_experts, device=x_TD.device)
    route = Route.from_dense(every_TE)
    rows: Tensor = experts(route.dispatch(x_TD.to(weight.dtype)), route.by_branch().offsets)
    return rows.unflatten(0, (num_experts, len(x_TD))).transpose(0, 1)  # type: ignore[no-untyped-call,no-any-return]


def foresight(routing: "Routing", layer: "MoE", *, theta: float = 0.1) -> Tensor:
    """Balancing term: the cheap router imitates the competition; 0 where there was none.

    Mean squared difference of the softmax of its scores and that of the affinities, all experts
    and, `theta` times, the winners (Nguyen et al. 2025, arXiv 2505.13380); see `learn.imitation`.

    Args:
        routing: of one call.
        layer: whose router competes.
        theta: weight of the winners.
    """
    if not _competed(layer):
        return nothing(routing.scores)
    return imitation(routing.clean, routing.scores.exp(), routing.route, theta=theta)


def diversity(routing: "Routing", layer: "MoE") -> Tensor:
    """Balancing term: mean cosine between the answers that a token's winners give.

    0 where there was no competition or one winner only. The winners run once more for it, on
    tokens without gradient, so that it teaches the experts and nothing before them (Nguyen et al.
    2025, arXiv 2505.13380).

    Args:
        routing: of one call.
        layer: whose experts answer.
    """
    route, tokens = routing.route, routing.tokens
    if not _competed(layer) or tokens is None:
        return nothing(routing.scores)
    rows = layer.experts(route.dispatch(tokens), route.by_branch().offsets)
    rows = functional.normalize(rows.flatten(1), dim=1)
    # The sum of all pairs of an input: the square of the sum less the squares, halved.
    total_TD = route.combine(rows, weighted=False)
    count_T = route.branches_per_input().to(rows.dtype)
    pairs_T = total_TD.square().sum(dim=1) - count_T
    several_T = count_T > 1
    cosine_T = pairs_T / (count_T * (count_T - 1)).clamp(min=1)
    return (cosine_T * several_T).sum() / several_T.sum().clamp(min=1)


def _competed(layer: "MoE") -> bool:
    return isinstance(layer.router, CompetingRouter) and layer.router.in_competition
