"""Pruning as a game: units take part in the network as long as it pays for them.

"Pruning as a Game: Equilibrium-Driven Sparsification of Neural Networks" (2025). Every unit is a
player with a participation s_i in [0, 1] that scales it, and a utility: what its participation
takes off the loss, less a price. Players climb their utility while weights descend the loss; one
whose marginal utility at 0 is not positive ends at 0 and is cut. No importance is ranked.

The sheet behind this is rated low: the abstract and summaries were read, not the formulas.
Certain: players, participation, benefit from the gradient of the loss, a cost with competition
among alike units, elimination at 0. Reconstructed: the update

    s_i <- clip(s_i + rate (-dL/ds_i - 2 size ||w_i||^2 s_i - price
                            - rivalry sum_{j != i} rho_ij s_j), 0, 1),

with rho_ij the squared cosine of the weights by which two units of a group are made.

Legend: U units of a group.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.channels import channel_groups, narrow
from pointsman.supernet.pruning.gates import gated_parameters, run_gated, unit_weights
from pointsman.supernet.pruning.transport import kept_of

VANISHED = 0.01  # a participation below this is none


def participation(
    s: Tensor, marginal: Tensor, rivals: Tensor, *, price: float, rivalry: float, rate: float
) -> Tensor:
    """(U,) participations after one step of all players at once.

    Args:
        s: (U,) participations in [0, 1].
        marginal: (U,) what a little more of each takes off the loss, less its own cost.
        rivals: (U, U) how alike players are; the diagonal is ignored.
        price: of taking part.
        rivalry: price of taking part beside players alike.
        rate: of the step.
    """
    beside = rivals @ s - rivals.diagonal() * s
    return (s + rate * (marginal - price - rivalry * beside)).clamp(0, 1)


class PruningGame(nn.Module):
    """A network whose units play for their place while it is trained.

    Players move by themselves whenever the gradient of a loss arrives, so it is trained like any
    network. In evaluation those that vanished are off.

    Args:
        model: is trained in place.
        example: inputs as for `channel_groups`.
        price: of taking part, in units of the loss.
        rivalry: price of taking part beside units alike.
        size: price of large weights, without which small participations could be made up for by
            large weights.
        rate: of the players; they should move no faster than the weights learn.

    Attributes:
        groups: of units that play.
        taking_part: (U,) participations of all groups, one after another.

    Raises:
        InputError: nothing can be pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        *,
        price: float = 0.0,
        rivalry: float = 0.0,
        size: float = 0.0,
        rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.model = model
        self.price, self.rivalry, self.size, self.rate = price, rivalry, size, rate
        self.groups = [group for group in channel_groups(model, example) if group.exact]
        if not self.groups:
            raise InputError(f"{type(model).__name__} has no group of units that may be pruned")
        self.register_buffer("taking_part", torch.ones(sum(group.size for group in self.groups)))
        self.taking_part: Tensor

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The network with its units scaled by their participation."""
        if self.training and torch.is_grad_enabled():
            gates = self.taking_part.clone().requires_grad_()
            gates.register_hook(self._move)  # type: ignore[no-untyped-call]
        else:
            gates = self.taking_part * (self.taking_part >= VANISHED)
        by_group = dict(zip(self.groups, self._by_group(gates), strict=True))
        return run_gated(self.model, by_group, *inputs, **options)

    def _by_group(self, gates: Tensor) -> tuple[Tensor, ...]:
        return torch.split(gates, [group.size for group in self.groups])

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        """One step of all players, with the gradient of the loss."""
        moved = []
        parts = zip(
            self.groups, self._by_group(self.taking_part), self._by_group(gradient), strict=True
        )
        for group, s, slope in parts:
            rows = unit_weights(self.model, group)
            unit = functional.normalize(rows, dim=1)
            marginal = -slope - 2 * self.size * rows.square().sum(dim=1) * s
            moved.append(
                participation(
                    s,
                    marginal,
                    (unit @ unit.T).square(),
                    price=self.price,
                    rivalry=self.rivalry,
                    rate=self.rate,
                )
            )
        self.taking_part.copy_(torch.cat(moved))

    @property
    def left(self) -> dict[str, int]:
        """How many units of each group still take part."""
        parts = zip(self.groups, self._by_group(self.taking_part), strict=True)
        return {group.name: int((s >= VANISHED).sum()) for group, s in parts}

    def extract(self) -> nn.Module:
        """The network without the units that vanished, the others scaled by their participation.

        A group keeps one unit in any case.
        """
        gates = self._by_group(self.taking_part * (self.taking_part >= VANISHED))
        alone = copy.deepcopy(self.model)
        with torch.no_grad():
            by_group = dict(zip(self.groups, gates, strict=True))
            for name, weight in gated_parameters(self.model, by_group).items():
                alone.get_parameter(name).copy_(weight)
        return narrow(alone, kept_of(self.groups, gates))
