"""Pruning inside training: redundant units fade to zero while the optimiser goes on.

HESSO and CRIC (Chen et al. 2024, arXiv 2409.09085). Train as usual; when a period begins, units are
scored, the lowest are called redundant, and after every further update these are multiplied by
(P - t - 1) / (P - t) at step t of the P steps of the period, so that they are exactly zero at its
end and stay so. What is zero is then cut without changing the function.

The score of a unit sums five criteria with equal weights, each divided by its L2 norm over all
units: norm, norm by size, 1 + cosine of weights and gradient, and the sizes of the first and second
order of the loss's change (|<w, g>| and <w, g>^2 / 2).

CRIC looks before it leaps: the lowest units are faded on trial, scores are recorded on the way,
units that become the lowest meanwhile are tried next, and everything is rolled back; the mean
recorded score decides.

Where we depart: the optimiser's step is yours (any optimiser), ours follows it. All that a unit
owns fades, in the layers that take it too, so that cutting it is exact whatever function follows
it. CRIC's further term from trial projections of layers is left out. Statistics of batch
normalisation do not fade.

Legend: U units.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.channels import ChannelGroup, channel_groups, narrow
from pointsman.supernet.pruning.importance import unit_sums

TOLERANCE = 1e-12  # against division by zero


def mixed_saliency(model: nn.Module, groups: Sequence[ChannelGroup]) -> Tensor:
    """(U of all groups) the five criteria in one; gradients of a loss must be there.

    Args:
        model: whose parameters hold gradients.
        groups: whose units are scored.
    """

    def over(of: Callable[[nn.Parameter, Tensor], Tensor]) -> Tensor:
        def with_gradient(weight: nn.Parameter) -> Tensor:
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            return of(weight, gradient)

        return torch.cat([unit_sums(model, group, with_gradient) for group in groups])

    norm = over(lambda w, g: w.square()).sqrt()
    slope = over(lambda w, g: g.square()).sqrt()
    along = over(lambda w, g: w * g)
    size = over(lambda w, g: torch.ones_like(w))
    criteria = (
        norm,
        norm / size.sqrt(),
        1 + along / (norm * slope).clamp_min(TOLERANCE),
        along.abs(),
        along.square() / 2,
    )
    return torch.stack([c / c.norm().clamp_min(TOLERANCE) for c in criteria]).mean(dim=0)


class Fading:
    """Fades the least units of a network to zero while it is trained.

    Call `step` after every step of the optimiser, with gradients still there.

    Args:
        model: is trained by you; `step` changes it in place.
        example: inputs as for `channel_groups`.
        remove: share of all units that goes, in (0, 1).
        start: steps before the first period.
        period: P, steps in which units fade.
        periods: how many there are; each takes the same number of units.

    Attributes:
        redundant: (U) whether each unit of all groups fades or is zero.
        faded: whether all periods are over.

    Raises:
        InputError: nothing can be pruned, a share outside (0, 1), or no steps.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        remove: float,
        start: int,
        period: int,
        periods: int = 1,
    ) -> None:
        if not 0 < remove < 1 or min(period, periods) < 1 or start < 0:
            raise InputError(
                "a share between 0 and 1 fades, in at least one period of at least one step, got "
                f"remove={remove}, start={start}, period={period}, periods={periods}"
            )
        self.model, self.start, self.period, self.periods = model, start, period, periods
        self.groups = [group for group in channel_groups(model, example) if group.exact]
        if not self.groups:
            raise InputError(f"{type(model).__name__} has no group of units that may be pruned")
        self.units = sum(group.size for group in self.groups)
        self.remove = round(remove * self.units)
        self.redundant = torch.zeros(self.units, dtype=torch.bool)
        self.saliency: Tensor | None = None
        self._fading = torch.zeros(self.units, dtype=torch.bool)
        self._steps = 0

    @property
    def faded(self) -> bool:
        """Whether every unit that goes is zero."""
        return self._steps >= self.start + self.period * self.periods

    def step(self) -> None:
        """Follow a step of the optimiser."""
        turn, at = divmod(self._steps - self.start, self.period)
        self._steps += 1
        if turn < 0:
            return
        if at == 0 and turn < self.periods:
            self._choose(turn)
        shrink = torch.ones(self.units)
        shrink[self.redundant] = 0.0
        if turn < self.periods:
            shrink[self._fading] = (self.period - at - 1) / (self.period - at)
        scale_units(self.model, self.groups, shrink)

    def _choose(self, turn: int) -> None:
        """The units that fade in this period."""
        score = self.saliency
        score = mixed_saliency(self.model, self.groups) if score is None else score
        count = self.remove * (turn + 1) // self.periods - int(self.redundant.sum())
        self._fading = lowest(score, self.groups, count, self.redundant)
        self.redundant = self.redundant | self._fading

    def extract(self) -> nn.Module:
        """The network without the units that are zero.

        Raises:
            InputError: units have not faded yet.
        """
        if not self.faded:
            raise InputError(
                f"units are cut once they are zero: only {self._steps} steps were made"
            )
        parts = torch.split(self.redundant, [group.size for group in self.groups])
        kept = {
            g: (~part).nonzero().flatten().tolist()
            for g, part in zip(self.groups, parts, strict=True)
        }
        return narrow(self.model, kept)


def lowest(
    score: Tensor, groups: Sequence[ChannelGroup], count: int, taken: Tensor | None = None
) -> Tensor:
    """(U) which units have the lowest scores; the best of each group is never among them.

    Args:
        score: (U) of all groups, one after another.
        groups: in that order.
        count: how many, at most as many as there are beside the best.
        taken: (U) those that are none of them either.
    """
    open_ = score.clone()
    if taken is not None:
        open_[taken] = torch.inf
    start = 0
    for group in groups:
        open_[start + int(score[start : start + group.size].argmax())] = torch.inf
        start += group.size
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[open_.argsort(stable=True)[:count]] = True
    return chosen & open_.isfinite()


@torch.no_grad()
def scale_units(model: nn.Module, groups: Sequence[ChannelGroup], factors: Tensor) -> None:
    """Multiply everything trained that a unit owns by its factor, in place.

    Args:
        model: that the groups were found in.
        groups: whose units.
        factors: (U) of all groups, one after another.
    """
    trained = dict(model.named_parameters(remove_duplicate=False))
    for group, factor in zip(groups, torch.split(factors, [g.size for g in groups]), strict=True):
        for part in group.slices:
            if part.name in trained and bool((factor != 1).any()):
                weight = trained[part.name]
                rows = part.rows_UR.reshape(-1).to(weight.device)
                each = factor.repeat_interleave(part.rows_UR.shape[1]).to(weight)
                shape = [-1 if dim == part.dim else 1 for dim in range(weight.dim())]
                taken = weight.index_select(part.dim, rows) * each.reshape(shape)
                weight.index_copy_(part.dim, rows, taken)


def trial_saliency(
    model: nn.Module,
    example: Any,
    loss: Callable[[nn.Module], Tensor],
    *,
    remove: float,
    steps: int = 4,
    cycles: int = 10,
) -> Tensor:
    """(U) mean scores on trial of which units are redundant (CRIC); give it to `Fading.saliency`.

    Args:
        model: is left as it is.
        example: inputs as for `channel_groups`.
        loss: of a network, on data of your own.
        remove: share of all units that is to go.
        steps: of a trial, in which its units fade.
        cycles: trials at most.
    """
    groups = [group for group in channel_groups(model, example) if group.exact]
    count = round(remove * sum(group.size for group in groups))
    first = _scored(model, groups, loss)
    total, times = first.clone(), torch.ones_like(first)
    tried = torch.zeros_like(first, dtype=torch.bool)
    trial = lowest(first, groups, count)
    for _ in range(cycles):
        if not trial.any():
            break
        tried |= trial
        alone = copy.deepcopy(model)
        after = torch.zeros_like(tried)
        for at in range(steps):
            scale_units(alone, groups, torch.where(trial, (steps - at - 1) / (steps - at), 1.0))
            if at == steps - 1:
                break  # at zero there is nothing to score
            score = _scored(alone, groups, loss)
            total, times = total + score, times + 1
            after |= lowest(score, groups, count)
        trial = after & ~tried
    return total / times


def _scored(
    model: nn.Module, groups: Sequence[ChannelGroup], loss: Callable[[nn.Module], Tensor]
) -> Tensor:
    alone = copy.deepcopy(model)
    alone.zero_grad()
    loss(alone).backward()  # type: ignore[no-untyped-call]
    return mixed_saliency(alone, groups)
