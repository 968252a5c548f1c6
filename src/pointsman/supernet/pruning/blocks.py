"""Pruning by evolution, block by block: a front for each block, one mask of each for the whole.

EMO-PMS ("An EMO joint pruning with multiple sub-networks: fast and effect", 2023). The network is
cut into consecutive blocks. Each block has its own evolutionary search over the masks of its units,
for a good network and few parameters, with all other blocks as they were; then one mask of each
front is taken so that the whole reaches its size at the least summed impairment.

The sheet behind this is rated low: only the abstracts were read. Certain: blocks, a multi-objective
evolution for each, judged with the rest of the original network behind it, and a joint choice by
impairment of the whole. Reconstructed: masks of units that live and die together; the impairment is
what the whole network loses if that block alone is masked, and is the first goal of the block's
evolution as well; the choice is an exact knapsack; the block's training towards its old outputs is
left out, so that a search only evaluates.

Legend: U units of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.channels import ChannelGroup, narrow
from pointsman.supernet.pruning.gates import run_gated
from pointsman.supernet.search.engine import Engine
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Genotype, Space

Network = Callable[..., Any]  # of inputs, as the network is called
Masks = dict[ChannelGroup, Tensor]
FINER = 64  # steps in which more is taken than the sum says, until the whole is small enough


def parameters_left(model: nn.Module, masks: Mapping[ChannelGroup, Tensor]) -> int:
    """How many parameters the network has without the units that are masked; counted exactly.

    Args:
        model: that the groups were found in.
        masks: (U,) of 0 and 1 for some groups.
    """
    less: dict[tuple[str, int], int] = {}
    for group, mask in masks.items():
        gone = int((mask == 0).sum())
        for part in group.slices:
            place = part.name, part.dim
            less[place] = less.get(place, 0) + gone * part.rows_UR.shape[1]
    return sum(
        prod(size - less.get((name, dim), 0) for dim, size in enumerate(parameter.shape))
        for name, parameter in model.named_parameters()
    )


def mask_space(groups: Sequence[ChannelGroup]) -> Space:
    """A choice for every unit: off or on."""
    return Space(
        [Choice(f"{g.name}.{unit}", (False, True)) for g in groups for unit in range(g.size)]
    )


def masks_of(groups: Sequence[ChannelGroup], genotype: Genotype) -> Masks:
    """(U,) of 0 and 1 for each group, of a genotype of its `mask_space`.

    Raises:
        InputError: a group would have no unit left.
    """
    parts = torch.split(
        torch.tensor(genotype, dtype=torch.float32), [group.size for group in groups]
    )
    for group, mask in zip(groups, parts, strict=True):
        if not mask.any():
            raise InputError(f"at least one unit of {group.name!r} stays, got none")
    return dict(zip(groups, parts, strict=True))


@dataclass(frozen=True)
class BlockPruning:
    """What the searches found and what was made of it.

    Attributes:
        model: the network without the masked units, not yet fine-tuned.
        masks: of all groups.
        fronts: of each block: its quality with the other blocks whole, and its parameters then.
        evaluations: how many masked networks were run.
    """

    model: nn.Module
    masks: Masks
    fronts: tuple[tuple[Evaluation, ...], ...]
    evaluations: int


def prune_by_blocks(
    model: nn.Module,
    blocks: Sequence[Sequence[ChannelGroup]],
    quality: Callable[[Network], float],
    *,
    to: float,
    evaluations: int,
    engine: Engine,
    seed: int = 0,
) -> BlockPruning:
    """A network with at most a share of its parameters: evolve each block, then choose together.

    Args:
        model: is left as it is.
        blocks: groups of units, each in one block. One block with all groups is the search over the
            whole network.
        quality: of a masked network on data held for it; higher is better.
        to: share of the parameters that is left at most, in (0, 1].
        evaluations: masked networks that are run in all, divided among the blocks.
        engine: of the searches, such as `nsga2`.
        seed: of the engine, one more for each block.

    Raises:
        UnreachableError: the smallest masks of all fronts together are too large.
    """
    whole = sum(parameter.numel() for parameter in model.parameters())
    fronts = []
    for at, groups in enumerate(blocks):
        problem = _problem(model, groups, quality)
        found = search(problem, engine, evaluations // len(blocks), seed=seed + at)
        fronts.append(tuple(front(found)))
    spared = [[(whole - e.cost, e.quality) for e in members] for members in fronts]
    needed = (1 - to) * whole
    for step in range(FINER + 1):  # blocks share weights, so less is spared than the sum
        taken = best_together(spared, needed * (1 + step / FINER))
        if taken is None:
            break
        masks: Masks = {}
        for groups, members, place in zip(blocks, fronts, taken, strict=True):
            masks |= masks_of(groups, members[place].genotype)
        if parameters_left(model, masks) <= to * whole:
            kept = {group: mask.nonzero().flatten().tolist() for group, mask in masks.items()}
            return BlockPruning(narrow(model, kept), masks, tuple(fronts), evaluations)
    raise UnreachableError(
        f"no masks of the fronts leave {to:.3g} of the {whole} parameters: allow more evaluations, "
        "or ask for more"
    )


def _problem(
    model: nn.Module, groups: Sequence[ChannelGroup], quality: Callable[[Network], float]
) -> Problem:
    """The search over the masks of one block."""

    def judged(genotype: Genotype) -> float:
        masks = masks_of(groups, genotype)
        with torch.no_grad():
            return quality(lambda *inputs: run_gated(model, masks, *inputs))

    def cost(genotype: Genotype) -> float:
        parts = torch.split(torch.tensor(genotype), [group.size for group in groups])
        return float(parameters_left(model, dict(zip(groups, parts, strict=True))))

    return Problem(mask_space(groups), judged, cost, unit="parameters")


def best_together(
    fronts: Sequence[Sequence[tuple[float, float]]], needed: float
) -> tuple[int, ...] | None:
    """One member of each front, with at least so much spared in sum and the best summed quality.

    Exact: partial choices are only dropped if another spares as much at a better quality.

    Args:
        fronts: of each block (what it spares, its quality).
        needed: to be spared in all.

    Returns:
        The place of the member taken in each front; None if nothing spares so much.
    """
    states: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for members in fronts:
        grown = [
            (spared + more, value + worth, (*taken, place))
            for spared, value, taken in states
            for place, (more, worth) in enumerate(members)
        ]
        states = []
        for state in sorted(grown, key=lambda s: (-s[0], -s[1])):
            if not states or state[1] > states[-1][1]:
                states.append(state)
    able = [state for state in states if state[0] >= needed]
    return max(able, key=lambda state: state[1])[2] if able else None
