"""Systems that learn task after task, with experts that are added and then frozen.

Legend: T tokens, n samples, S places of a sample, E experts, D width, C classes of a task.
"""

from copy import deepcopy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.experts import LoRAExperts, MixedExperts, freeze
from pointsman.moe.layer import MoE, Routing
from pointsman.route import Route
from pointsman.select import top_k


class SelfActivated(nn.Module):
    """A router without weights: each rank-1 expert scores itself by what its own a makes of x.

    Scores are |a_i . x| over the length of all these activations, divided by a temperature.

    Args:
        experts: the bank that it scores, of `LoRAExperts` of rank 1; state dicts name its weights
            here too.
        temperature: a small one sharpens the softmax that follows.
    """

    def __init__(self, experts: MixedExperts, temperature: float) -> None:
        super().__init__()
        self.experts, self.temperature = experts, temperature

    def forward(self, x_TD: Tensor) -> Tensor:
        """Scores (T, E)."""
        keys = [bank.a_ERD.squeeze(1) for bank in _banks(self.experts)]
        activation_TE = functional.linear(x_TD, torch.cat(keys)).abs()
        return functional.normalize(activation_TE, dim=1) / self.temperature


def mixture_of_rank(
    base: nn.Linear,
    rank: int = 4,
    k: int = 4,
    *,
    earlier: MoE | None = None,
    temperature: float = 0.1,
) -> MoE:
    """Every rank-1 piece of an update is an expert that scores itself; a new task brings new ones.

    The pieces of earlier tasks are frozen and stay on offer. A token takes the k of highest score
    over all tasks.

    Where we depart: the paper's exact formula of the scores was not found; here they are
    |a_i . x| / ||A x||, and weights a softmax of them over all pieces, not renormalised. Its cut of
    weak pieces at test time is left out. Outputs of earlier tasks still change a little, as new
    pieces enter the softmax.

    Args:
        base: the layer beside which they run; it is frozen.
        rank: pieces that this task adds.
        k: pieces a token.
        earlier: the layer after the last task, whose pieces are frozen and taken over.
        temperature: of the softmax.

    Source: Lu et al. 2025, "Little by little: continual learning via self-activated sparse
    mixture-of-rank adaptive learning", arXiv 2506.21035.
    """
    known = [] if earlier is None else [freeze(bank) for bank in _banks(earlier.experts)]
    new = LoRAExperts(rank, base.in_features, base.out_features, rank=1)
    pool = MixedExperts([*known, new.to(base.weight)])
    select = partial(top_k, k=min(k, pool.num_experts), renormalize=False)
    return MoE(SelfActivated(pool, temperature), select, pool, shared=freeze(base))


def _banks(pool: nn.Module) -> list[LoRAExperts]:
    assert isinstance(pool, MixedExperts)
    return [bank for bank in pool.parts if isinstance(bank, LoRAExperts)]


class BiLevel(NamedTuple):
    """What a call of `BiLevelAdapter` decided.

    Fields: `routing` of the samples over experts; `doubt` (n, E), entropy of each task's head;
    `logits`, (n, C) of each task's head, for its own loss.
    """

    routing: Routing
    doubt: Tensor
    logits: list[Tensor]


class BiLevelAdapter(nn.Module):
    """An expert, a router and a head a task; the surest routers of a sample choose its experts.

    Router t and head t read the first place of what expert t answers. The routers whose heads have
    the least entropy are kept; each keeps the largest of its scores over the experts that it knew,
    and the weights of the kept routers add up. All experts run, as all heads are asked.

    Args:
        width: D.
        expert: hidden width of a task's expert.
        shared: hidden width of the expert of all tasks.
        routers: kept for a sample.
        experts: kept by a router.
        momentum: part of the shared expert's old weights that `after_step` keeps.

    """

    def __init__(
        self,
        width: int,
        *,
        expert: int = 16,
        shared: int = 64,
        routers: int = 2,
        experts: int = 3,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        self.width, self.expert, self.kept_routers = width, expert, routers
        self.kept_experts, self.momentum = experts, momentum
        self.shared = _adapter(width, shared, 0.0)
        self.anchor = freeze(deepcopy(self.shared))  # its weights at the last step
        self.experts, self.routers, self.heads = (nn.ModuleList() for _ in range(3))

    @property
    def num_experts(self) -> int:
        """E, tasks so far."""
        return len(self.experts)

    def add_task(self, classes: int) -> None:
        """Freeze what earlier tasks brought, and add an expert, a router and a head.

        From the third task on the expert starts as the mean of the older ones but the newest.
        """
        for part in (self.experts, self.routers, self.heads):
            freeze(part)
        new, older = _adapter(self.width, self.expert, FIRST_SCALE), list(self.experts)[:-1]
        if older:
            with torch.no_grad():
                for weight, *old in zip(
                    new.parameters(), *(each.parameters() for each in older), strict=True
                ):
                    weight.copy_(torch.stack(old).mean(dim=0))
        norm, head = nn.LayerNorm(self.width), nn.Linear(self.width, classes)
        like = next(self.shared.parameters())
        self.experts.append(new.to(like))
        self.routers.append(nn.Linear(self.width, self.num_experts).to(like))
        self.heads.append(nn.Sequential(norm, head).to(like))

    def forward(self, x_nSD: Tensor) -> tuple[Tensor, BiLevel]:
        """What is added to each place, (n, S, D), and what was decided for each sample.

        Raises:
            InputError: no task was added yet.
        """
        if not self.num_experts:
            raise InputError("no task is known yet: call add_task(classes) first")
        answers_EnSD = torch.stack([expert(x_nSD) for expert in self.experts])
        first_EnD = answers_EnSD[:, :, 0]
        logits = [head(first) for head, first in zip(self.heads, first_EnD, strict=True)]
        doubt_nE = torch.stack([_entropy(each) for each in logits], dim=1)
        kept_nR = self._keep(doubt_nE)
        weights_nE = self._weights(first_EnD, kept_nR)
        y_nSD = torch.einsum("ne,ensd->nsd", weights_nE, answers_EnSD) + self.shared(x_nSD)
        route = Route.from_dense(weights_nE)
        routing = Routing(weights_nE, route, weights_nE, num_tokens=len(x_nSD))
        return y_nSD, BiLevel(routing, doubt_nE, logits)

    def _keep(self, doubt_nE: Tensor) -> Tensor:
        """(n, R): the surest routers; in training the newest and the surest of the others."""
        count = min(self.kept_routers, self.num_experts)
        if not self.training:
            return doubt_nE.topk(count, dim=1, largest=False).indices
        newest = self.num_experts - 1
        sure_nR = doubt_nE[:, :newest].topk(count - 1, dim=1, largest=False).indices
        return torch.cat([sure_nR, sure_nR.new_full((len(doubt_nE), 1), newest)], dim=1)

    def _weights(self, first_EnD: Tensor, kept_nR: Tensor) -> Tensor:
        """(n, E): the sum over kept routers of the softmax of the largest scores of each."""
        each = []
        for router, first_nD in zip(self.routers, first_EnD, strict=True):
            scores = router(first_nD)  # over the experts that this router knew
            top = scores.topk(min(self.kept_experts, scores.shape[1]), dim=1)
            weights = torch.zeros_like(scores).scatter(1, top.indices, top.values.softmax(dim=1))
            each.append(functional.pad(weights, (0, self.num_experts - scores.shape[1])))
        weights_nEE = torch.stack(each, dim=1)
        kept_nRE = kept_nR.unsqueeze(2).expand(-1, -1, self.num_experts)
        return weights_nEE.gather(1, kept_nRE).sum(dim=1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Pull the shared expert back to where it was, but for a small part of the step."""
        pairs = zip(self.shared.parameters(), self.anchor.parameters(), strict=True)
        for weight, old in pairs:
            weight.lerp_(old, self.momentum)
            old.copy_(weight)


# A head reads the normalised answer of its expert, and the gradient of a norm at zero is hundreds
# of times too large; so an expert does not start at zero, as the paper has it.
FIRST_SCALE = 0.1


class _Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _adapter(width: int, hidden: int, start: float) -> nn.Sequential:
    down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
    norm, drop = nn.LayerNorm(width), nn.Dropout(0.1)
    return nn.Sequential(norm, down, nn.ReLU(), drop, up, _Scale(width, start))


def _entropy(logits_nC: Tensor) -> Tensor:
    log_nC = logits_nC.log_softmax(dim=1)
    return -(log_nC.exp() * log_nC).sum(dim=1)


def bi_level_routing(
    width: int, *, expert: int = 16, shared: int = 64, routers: int = 2, experts: int = 3
) -> BiLevelAdapter:
    """Beside a frozen block: first the routers that know a sample's task, then experts by those.

    Call `add_task(classes)` before each task, add each head's loss in `BiLevel.logits` for the
    newest task to that of the model, and `after_step` after each update.

    Where we depart: the paper's classifier (cosine, aligned on samples drawn after each task) and
    its distillation of final predictions into heads are left to the caller; a head's entropy is
    over its own classes, as in the paper, and comparable only if tasks have about as many. The
    channel scales of experts start at 0.1 instead of 0, which a head cannot start from.

    Args:
        width: D.
        expert: hidden width of a task's expert.
        shared: hidden width of the expert of all tasks.
        routers: kept for a sample.
        experts: kept by a router.

    Source: Lou et al. 2026, "Scaling continual learning to 300+ tasks with bi-level routing
    mixture-of-experts", arXiv 2602.03473.
    """
    return BiLevelAdapter(width, expert=expert, shared=shared, routers=routers, experts=experts)
