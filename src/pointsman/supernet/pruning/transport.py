"""Masks by optimal transport: as many units stay as asked for, at every step of training.

Differentiable Transportation Pruning (Li et al. 2023, arXiv 2307.08483). Importance scores s_i of n
units, trained like weights, are transported to the two points 0 and 1, of which 1 has room for k:

    minimise over P   sum_ij P_ij (s_i - t_j)^2 + eps KL(P | previous P),   t = (0, 1),
    rows summing to 1/n, columns to (1 - k/n, k/n);   mask m_i = n P_i1.

The proximal term makes every step sharpen the mask of the last, so no temperature is scheduled.

Where we depart: the paper approaches the plan with one Sinkhorn iteration a step. With two targets
the plan is a sigmoid of the scores and one price, which is found exactly, so the masks lie in
[0, 1] and sum to k at every step; its gradient is exact as well. Constants are ours: the paper's
were not found.

Legend: U units.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.channels import ChannelGroup, channel_groups, narrow
from pointsman.supernet.pruning.gates import run_gated

HALVINGS = 60  # of the interval that holds the price


def transport_mask(scores: Tensor, previous: Tensor, keep: int, epsilon: float) -> Tensor:
    """(U,) the log odds of the next mask; its sigmoid lies in (0, 1) and sums to `keep`.

    Args:
        scores: (U,) importance, floating point.
        previous: (U,) log odds of the last mask, taken as constant; zeros at first.
        keep: units that stay, above 0 and below U.
        epsilon: weight of staying near the last mask: the smaller, the sharper at once.

    Raises:
        InputError: nothing or everything is kept, or an epsilon that is not above 0.
    """
    if not 0 < keep < len(scores):
        raise InputError(f"of {len(scores)} units 1 to {len(scores) - 1} are kept, got {keep}")
    if epsilon <= 0:
        raise InputError(f"epsilon is above 0, got {epsilon}")
    odds = previous.detach() + (2 * scores - 1) / epsilon  # the gain of 1 over 0 in the cost
    with torch.no_grad():
        low, high = -odds.max() - 50, -odds.min() + 50
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if (odds + middle).sigmoid().sum() < keep else (low, middle)
        price = (low + high) / 2
        slope = (odds + price).sigmoid()
        slope = (slope * (1 - slope)).sum().clamp_min(1e-12)
    # One Newton step from the solution: it stays where it is, and has the gradient of the price.
    price = price - ((odds + price).sigmoid().sum() - keep) / slope
    return odds + price


class TransportPruning(nn.Module):
    """A network that is trained together with masks on its units, of a fixed number.

    In training every forward moves the masks one step; in evaluation the best units are kept whole
    and the others are off. Train it like any network, then `extract` and fine-tune.

    Args:
        model: is trained in place.
        example: inputs as for `channel_groups`.
        keep: share of the units that stays, in (0, 1).
        together: one budget for all groups; False: one for each.
        epsilon: as for `transport_mask`; about a hundredth of the updates times the scores' spread.
        seed: of the scores, which start nearly equal.

    Raises:
        InputError: nothing can be pruned, or a share outside (0, 1).
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        keep: float,
        together: bool = False,
        epsilon: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < keep < 1:
            raise InputError(f"the share of units that stays lies between 0 and 1, got {keep}")
        self.model, self.epsilon = model, epsilon
        self.groups = [group for group in channel_groups(model, example) if group.exact]
        if not self.groups:
            raise InputError(f"{type(model).__name__} has no group of units that may be pruned")
        sizes = [group.size for group in self.groups]
        self.budgets = [sum(sizes)] if together else sizes
        self.keep = [min(max(1, round(keep * size)), size - 1) for size in self.budgets]
        generator = torch.Generator().manual_seed(seed)
        self.scores = nn.Parameter(0.5 + 0.01 * torch.randn(sum(sizes), generator=generator))
        self.register_buffer("odds", torch.zeros(sum(sizes)))
        self.odds: Tensor

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The network under its masks, which move one step in training."""
        gates = self._step() if self.training else self.kept_units()
        by_group = dict(zip(self.groups, self._by_group(gates), strict=True))
        return run_gated(self.model, by_group, *inputs, **options)

    def _step(self) -> Tensor:
        odds = torch.cat(
            [
                transport_mask(scores, last, keep, self.epsilon)
                for scores, last, keep in zip(
                    torch.split(self.scores, self.budgets),
                    torch.split(self.odds, self.budgets),
                    self.keep,
                    strict=True,
                )
            ]
        )
        self.odds.copy_(odds.detach().clamp(-50, 50))
        return odds.sigmoid()

    def kept_units(self) -> Tensor:
        """(U of all groups) 1 for the units that stay, 0 for the others."""
        hard = torch.zeros_like(self.odds)
        for part, odds, keep in zip(
            torch.split(hard, self.budgets),
            torch.split(self.odds, self.budgets),
            self.keep,
            strict=True,
        ):
            part[odds.topk(keep).indices] = 1
        return hard

    def _by_group(self, gates: Tensor) -> tuple[Tensor, ...]:
        return torch.split(gates, [group.size for group in self.groups])

    def extract(self) -> nn.Module:
        """The network without the units that are off; a group keeps one unit in any case."""
        return narrow(self.model, kept_of(self.groups, self._by_group(self.kept_units())))


def kept_of(groups: list[ChannelGroup], gates: tuple[Tensor, ...]) -> dict[ChannelGroup, list[int]]:
    """The units with a gate above 0, by group; the first unit where there is none."""
    return {
        group: (gate > 0).nonzero().flatten().tolist() or [0]
        for group, gate in zip(groups, gates, strict=True)
    }
