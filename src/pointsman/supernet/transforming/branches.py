"""Edits of a trained layer that give it several branches and leave its function as it is.

Cai et al. 2018, "Path-Level Network Transformation for Efficient Architecture Search", arXiv
1806.02639. A layer becomes N copies whose outputs are averaged, or N parts whose outputs are
concatenated; a branch can get a further node behind it, joined by an identity; an identity can be
replaced by an operation, which is the only edit that changes the function. Every result is an
ordinary module, and edits can be applied to what edits gave.

Where we depart: merges hold no batch normalisation of their own, so none has to be set.

Channels are dimension 1 of inputs and outputs: (N, C, ...).
"""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from pointsman.errors import InputError

Merge = Literal["add", "concat"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
# Without parameters, and each output channel depends on the same input channel alone.
CHANNELWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish),
    *(nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d, nn.MaxPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
)


class Branches(nn.Module):
    """Several modules on one input, whose outputs are averaged or concatenated.

    Args:
        branches: at least one; with "add" their outputs have one shape, with "concat" they may
            differ in channels.
        merge: "add" for the mean, "concat" along the channels.

    Raises:
        InputError: no branch, or another merge.
    """

    def __init__(self, branches: Sequence[nn.Module], merge: Merge) -> None:
        super().__init__()
        if not branches or merge not in ("add", "concat"):
            raise InputError(
                f"branches are at least one, merged by 'add' or 'concat', got {len(branches)} and "
                f"{merge!r}"
            )
        self.branches = nn.ModuleList(branches)
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → the merged outputs."""
        outputs = [branch(x) for branch in self.branches]
        if self.merge == "concat":
            return torch.cat(outputs, dim=1)
        return torch.stack(outputs).mean(dim=0)

    def extra_repr(self) -> str:
        """How the branches are merged."""
        return f"merge={self.merge!r}"


class Channels(nn.Module):
    """The channels of its input from `start` up to `stop`."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) → (N, stop - start, ...)."""
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        """Which channels."""
        return f"{self.start}, {self.stop}"


def replicated(module: nn.Module, branches: int, *, noise: float = 0.0, seed: int = 0) -> Branches:
    """Copies of a module on the same input, their outputs averaged.

    Args:
        module: any that gives one tensor; left as it is.
        branches: N.
        noise: standard deviation of Gaussian noise on the weights of every copy but the first, as
            a share of each weight tensor's own; exact copies get equal gradients and never part.
            The published code uses 6e-3; 0 keeps the function.
        seed: of the noise.

    Raises:
        InputError: no branch.
    """
    generator = torch.Generator().manual_seed(seed)
    copies = [copy.deepcopy(module) for _ in range(branches)]
    with torch.no_grad():
        for each in copies[1:] if noise > 0 else []:
            for weight in each.parameters():
                draw = torch.randn(weight.shape, generator=generator).to(weight)
                weight.add_(noise * weight.std(correction=0) * draw)
    return Branches(copies, "add")


def split(module: nn.Module, branches: int, channels: int) -> Branches:
    """Parts of a module that each give some of its output channels, concatenated.

    What mixes channels (a linear layer, a convolution) sees the full input in every branch; what
    does not (identity, pooling, depthwise convolution, activation, batch normalisation) sees the
    channels it needs. In a `Sequential`, what comes before the last mixing layer is copied.

    Args:
        module: made of such layers; left as it is.
        branches: N.
        channels: that the module gives; shared out as evenly as they can be.

    Raises:
        InputError: fewer channels than branches, a layer of another kind, or a grouped convolution
            whose groups would be cut.
    """
    if not 1 <= branches <= channels:
        raise InputError(f"a split has from 1 to {channels} branches (channels), got {branches}")
    bounds = [channels * at // branches for at in range(branches + 1)]
    return Branches([part_of(module, *both) for both in pairwise(bounds)], "concat")


def with_node(module: nn.Module) -> nn.Sequential:
    """The module and a new node behind it, joined by an identity that may be edited in turn."""
    return nn.Sequential(module, nn.Identity())


def replace_identity(model: nn.Module, name: str, operation: nn.Module) -> None:
    """Put an operation where the model has an identity, in place; this changes its function.

    Raises:
        InputError: what has this name is no identity.
    """
    if not isinstance(found := model.get_submodule(name), nn.Identity):
        raise InputError(
            f"only an identity is replaced, {name!r} is a {type(found).__name__}: insert a node"
        )
    model.set_submodule(name, operation)


def edited(
    model: nn.Module, names: Sequence[str], edit: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """A copy of a model in which the named modules are edited.

    Args:
        model: left as it is.
        names: of modules, as `named_modules` gives them.
        edit: gives the module that takes the place of one, such as `lambda m: replicated(m, 2)`.
    """
    changed = copy.deepcopy(model)
    for name in names:
        changed.set_submodule(name, edit(changed.get_submodule(name)))
    return changed


def part_of(module: nn.Module, start: int, stop: int) -> nn.Sequential:
    """A module that gives the output channels from `start` up to `stop` of another.

    Raises:
        InputError: a layer of a kind that cannot be split, or cut groups.
    """
    layers = list(_flat(module))
    taken: list[nn.Module] = []
    while layers:
        layer = layers.pop()
        if isinstance(layer, nn.Linear) or (isinstance(layer, Convolution) and layer.groups == 1):
            return nn.Sequential(*map(copy.deepcopy, layers), _rows(layer, start, stop), *taken)
        part = _rows(layer, start, stop)
        if isinstance(layer, Convolution):
            start, stop = _group_inputs(layer, start, stop)
        taken.insert(0, part)
    return nn.Sequential(Channels(start, stop), *taken)


def _flat(module: nn.Module) -> list[nn.Module]:
    """The layers of a sequence, of sequences within it too."""
    if type(module) is nn.Sequential:
        return [layer for child in module for layer in _flat(child)]
    return [module]


def _group_inputs(layer: Convolution, start: int, stop: int) -> tuple[int, int]:
    """Which input channels these output channels of a grouped convolution depend on."""
    outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    if start % outputs or stop % outputs:
        raise InputError(
            f"groups of {outputs} output channels stay whole, got channels {start} to {stop}: "
            "split into a number of branches that divides the groups"
        )
    return start // outputs * inputs, stop // outputs * inputs


def _rows(layer: nn.Module, start: int, stop: int) -> nn.Module:
    """A copy of one layer with these output channels."""
    if not isinstance(layer, (*CHANNELWISE, nn.Linear, Convolution, Norm)):
        raise InputError(
            f"a {type(layer).__name__} cannot be split into channels: replicate it, or split the "
            "layers in it"
        )
    part = copy.deepcopy(layer)
    for name, weight in list(part.named_parameters(recurse=False)):
        rows = weight.detach()[start:stop].clone()
        setattr(part, name, nn.Parameter(rows, requires_grad=weight.requires_grad))
    for name, value in list(part.named_buffers(recurse=False)):
        setattr(part, name, value[start:stop].clone() if value.ndim else value.clone())
    if isinstance(part, nn.Linear):
        part.out_features = stop - start
    elif isinstance(part, Norm):
        part.num_features = stop - start
    elif isinstance(part, Convolution):
        if part.groups > 1:
            first, last = _group_inputs(part, start, stop)
            part.groups = part.groups * (last - first) // part.in_channels
            part.in_channels = last - first
        part.out_channels = stop - start
    return part
