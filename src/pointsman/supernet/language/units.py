"""Units of a network that are switched off for a while or for good, as zeros.

Legend: U units of a group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.modules import evaluating
from pointsman.supernet.channels import ChannelGroup
from pointsman.supernet.language.calling import call

# (model, group, size (features,) of what each linear layer reads, by name) -> (U,) at least 0
Prior = Callable[[nn.Module, ChannelGroup, Mapping[str, Tensor]], Tensor]


class Units:
    """The units of several groups, (group, index), and which are left; those gone are zeros."""

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self.model, self.groups = model, tuple(groups)
        self.alive = [torch.ones(group.size, dtype=torch.bool) for group in groups]
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._owned = [
            [(tensors[part.name], part.dim, part.rows_UR) for part in group.slices]
            for group in groups
        ]
        self._sizes = [
            float(sum(rows.shape[1] * t.numel() / t.shape[dim] for t, dim, rows in owned))
            for owned in self._owned
        ]
        self.total = sum(s * g.size for s, g in zip(self._sizes, groups, strict=True))
        self.removed = 0.0

    def size(self, unit: tuple[int, int]) -> float:
        """Parameters of a unit."""
        return self._sizes[unit[0]]

    def kept(self) -> dict[ChannelGroup, list[int]]:
        """What is left, by group."""
        alive = zip(self.groups, self.alive, strict=True)
        return {group: alive_U.nonzero().flatten().tolist() for group, alive_U in alive}

    def priors(self, read: Mapping[str, Tensor], prior: Prior) -> dict[tuple[int, int], float]:
        """Of the units left, as multiples of their mean in the group."""
        found = {}
        for at, (group, alive_U) in enumerate(zip(self.groups, self.alive, strict=True)):
            worth_U = prior(self.model, group, read).double()
            mean = float(worth_U[alive_U].mean()) or 1.0
            for unit in alive_U.nonzero().flatten().tolist():
                found[at, unit] = float(worth_U[unit]) / mean
        return found

    def candidates(
        self, prior: Mapping[tuple[int, int], float], share: float
    ) -> list[tuple[int, int]]:
        """This share of the units left in each group, those of the lowest prior; one stays."""
        found: list[tuple[int, int]] = []
        for at, alive_U in enumerate(self.alive):
            left = [(at, unit) for unit in alive_U.nonzero().flatten().tolist()]
            count = min(int(np.ceil(share * len(left) - 1e-9)), len(left) - 1)
            found += sorted(left, key=prior.__getitem__)[:count]
        return found

    def remove(self, unit: tuple[int, int]) -> float:
        """Zero a unit for good; its parameters."""
        with torch.no_grad():
            self._zero([unit])
        self.alive[unit[0]][unit[1]] = False
        self.removed += self.size(unit)
        return self.size(unit)

    @contextmanager
    def without(self, off: Sequence[tuple[int, int]]) -> Iterator[None]:
        """These units are zeros meanwhile."""
        with torch.no_grad():
            before = self._zero(off)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, whole in before:
                    tensor.copy_(whole)

    def _zero(self, off: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """Copies of all tensors that change, once each, before they do."""
        before: dict[int, tuple[Tensor, Tensor]] = {}
        for at, owned in enumerate(self._owned):
            gone = torch.tensor([unit for group, unit in off if group == at], dtype=torch.long)
            for tensor, dim, rows_UR in owned if len(gone) else ():
                before.setdefault(id(tensor), (tensor, tensor.clone()))
                tensor.index_fill_(dim, rows_UR[gone].flatten(), 0)
        return list(before.values())


def input_dim(module: nn.Module) -> int:
    """Which dimension of a linear layer's weight counts its inputs."""
    # transformers' Conv1D holds inputs first
    return 0 if type(module).__name__ == "Conv1D" else 1


@torch.no_grad()
def inputs_read(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """Root of the summed squares of each feature (features,) that a linear layer reads, by name."""
    squares: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":

            def note(module: nn.Module, inputs: Any, name: str = name) -> None:
                x = inputs[0].double().flatten(0, -2).square().sum(dim=0)
                squares[name] = squares[name] + x if name in squares else x

            handles.append(module.register_forward_pre_hook(note))
    try:
        with evaluating(model):
            call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return {name: square.sqrt() for name, square in squares.items()}
