"""Tree-structured cells as a space, and the trained layer that becomes one of them.

Cai et al. 2018, arXiv 1806.02639. A tree starts with one layer. An edge of it gets branches, each
branch may get a node behind it, and the identity that joins this node is an edge to edit in turn or
to replace by an operation. Everything but the replacement keeps the function.

Names of the choices: "cell.merge" of the first edge; "cell.0.insert", whether its branch 0 gets a
node; "cell.0.node.operation" and "cell.0.node.merge" of the identity to that node, and so on.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.space import Choice, Option, Space
from pointsman.supernet.transforming.branches import Branches, replicated, split, with_node

# How an edge may branch, and into how many: the published set.
MERGES = {"none": 1, "add 2": 2, "add 3": 3, "concat 2": 2}
MOST_BRANCHES = max(MERGES.values())
IDENTITY = "identity"

# By name, what makes a new operation that keeps shapes, for a number of channels.
Operations = Mapping[str, Callable[[int], nn.Module]]
Condition = tuple[str, tuple[Option, ...]] | None


def convolution(channels: int, size: int) -> nn.Module:
    """ReLU, convolution and batch normalisation, which keep the shape."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


def separable(channels: int, size: int) -> nn.Module:
    """ReLU, depthwise and pointwise convolution and batch normalisation, which keep the shape."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    )


# What an identity may become, as published, less the separable convolution of 7 x 7.
OPERATIONS: Operations = {
    IDENTITY: lambda channels: nn.Identity(),
    "conv1x1": lambda channels: convolution(channels, 1),
    "separable3x3": lambda channels: separable(channels, 3),
    "separable5x5": lambda channels: separable(channels, 5),
    "avgpool3x3": lambda channels: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "maxpool3x3": lambda channels: nn.MaxPool2d(3, 1, 1),
}


def cell_space(operations: Sequence[str] = tuple(OPERATIONS), depth: int = 2) -> Space:
    """All trees that grow from one layer.

    Args:
        operations: that an identity may become; `IDENTITY` among them.
        depth: 2: the layer branches, and each branch may get one node; 3: the identities to those
            nodes branch too.

    Raises:
        InputError: a depth below 2, or operations without the identity.
    """
    if depth < 2 or IDENTITY not in operations:
        raise InputError(
            f"trees have a depth of 2 or more and {IDENTITY!r} among their operations, got {depth} "
            f"and {list(operations)}"
        )
    return Space(list(_edge("cell", tuple(operations), depth, None, layer=True)))


def _edge(
    path: str, operations: tuple[str, ...], depth: int, when: Condition, *, layer: bool = False
) -> list[Choice]:
    choices, merge = [], f"{path}.merge"
    if depth > 1:
        choices.append(Choice(merge, tuple(MERGES), when))
    if not layer:
        alone = (merge, ("none",)) if depth > 1 else when
        choices.append(Choice(f"{path}.operation", operations, alone))
    for at in range(MOST_BRANCHES) if depth > 1 else ():
        there = (merge, tuple(name for name, count in MERGES.items() if count > max(at, 1)))
        branch = f"{path}.{at}"
        if not layer:
            choices.append(Choice(f"{branch}.operation", operations, there))
        choices.append(Choice(f"{branch}.insert", (False, True), there))
        inserted = (f"{branch}.insert", (True,))
        choices += _edge(f"{branch}.node", operations, depth - 1, inserted)
    return choices


def transformed(
    module: nn.Module,
    options: Mapping[str, Option],
    channels: int,
    *,
    operations: Operations = OPERATIONS,
    noise: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A trained layer as the tree that these options describe, with its weights in every copy.

    Args:
        module: that can be replicated and split; left as it is.
        options: by name, as `cell_space(...).decode` gives them.
        channels: that the module gives.
        operations: by name.
        noise: of copies, see `replicated`.
        seed: of new operations and of the noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _grown(module, "cell", options, channels, operations, noise)


def _grown(
    module: nn.Module,
    path: str,
    options: Mapping[str, Option],
    channels: int,
    operations: Operations,
    noise: float,
) -> nn.Module:
    merge = str(options.get(f"{path}.merge", "none"))
    if merge == "none":
        return _replaced(module, options.get(f"{path}.operation"), channels, operations)
    count = MERGES[merge]
    if merge.startswith("add"):
        sizes = [channels] * count
        grown = replicated(module, count, noise=noise, seed=int(torch.randint(2**31, ())))
    else:
        sizes = [channels * (at + 1) // count - channels * at // count for at in range(count)]
        grown = split(module, count, channels)
    branches = []
    for at, (branch, size) in enumerate(zip(grown.branches, sizes, strict=True)):
        name = f"{path}.{at}"
        branch = _replaced(branch, options.get(f"{name}.operation"), size, operations)
        if options.get(f"{name}.insert", False):
            branch = with_node(branch)
            branch[1] = _grown(branch[1], f"{name}.node", options, size, operations, noise)
        branches.append(branch)
    return Branches(branches, grown.merge)


def _replaced(
    module: nn.Module, operation: Option | None, channels: int, operations: Operations
) -> nn.Module:
    """The identity, or the channels of it that a branch has, followed by the operation instead."""
    if operation is None or operation == IDENTITY:
        return module
    new = operations[str(operation)](channels)
    return nn.Sequential(module[0], new) if isinstance(module, nn.Sequential) else new


def tangent_reward(quality: float) -> float:
    """tan(quality * pi / 2): the nearer to 1, the more a gain counts; quality at most 0.999."""
    return math.tan(min(quality, 0.999) * math.pi / 2)
