"""Paths through a network: how often an input runs each block.

A path is a row of counts, one for each block in order: 0 skips the block, 1 runs it, 2 runs it
twice. (1, 1, ..., 1) is the network as it was trained. Runs of one block follow one another, so the
counts say everything.

Legend: N inputs, B blocks, A actions (0 to A - 1 runs of a block), P paths.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations, product

import torch
from torch import Tensor

from pointsman.errors import InputError

LayerPath = tuple[int, ...]

MOST_PATHS = 100_000


def whole_path(blocks: int) -> LayerPath:
    """Every block once: the network as it was trained."""
    return (1,) * blocks


def longest_gap(path: LayerPath) -> int:
    """The most blocks in a row that a path skips."""
    longest = here = 0
    for count in path:
        here = 0 if count else here + 1
        longest = max(longest, here)
    return longest


def enumerate_paths(
    blocks: int,
    *,
    actions: int = 3,
    editable: Collection[int] | None = None,
    max_edits: int | None = None,
    max_gap: int | None = None,
) -> list[LayerPath]:
    """All paths that differ from the whole in a few blocks, the shortest first.

    Among paths of one length those with fewer edits come first, so that the whole network stands
    before others of its length.

    Args:
        blocks: B.
        actions: A: 2 only skips, 3 repeats once too.
        editable: blocks that may be skipped or repeated. None: all.
        max_edits: the most blocks that differ from the whole. None: all may.
        max_gap: the most skips in a row. None: any number.

    Raises:
        InputError: fewer than two actions, a block that does not exist, or more than 100,000 paths.
    """
    _check_actions(actions)
    places = check_editable(editable, blocks)
    most = len(places) if max_edits is None else min(max_edits, len(places))
    _refuse_many(len(places), actions - 1, most)
    edits = [count for count in range(actions) if count != 1]
    found = []
    for size in range(most + 1):
        for chosen in combinations(places, size):
            for counts in product(edits, repeat=size):
                path = list(whole_path(blocks))
                for place, count in zip(chosen, counts, strict=True):
                    path[place] = count
                if max_gap is None or longest_gap(tuple(path)) <= max_gap:
                    found.append(tuple(path))
    return sorted(found, key=lambda path: (sum(path), edits_of(path)))


def edits_of(path: LayerPath) -> int:
    """How many blocks a path skips or repeats."""
    return sum(count != 1 for count in path)


def check_editable(editable: Collection[int] | None, blocks: int) -> tuple[int, ...]:
    """Which blocks may be skipped or repeated, ascending.

    Raises:
        InputError: a block that does not exist.
    """
    if editable is None:
        return tuple(range(blocks))
    for block in editable:
        if not 0 <= block < blocks:
            raise InputError(f"there are blocks 0 to {blocks - 1}, got {block} among the editable")
    return tuple(sorted(set(editable)))


def check_runs(runs_NB: Tensor, inputs: int, blocks: int) -> Tensor:
    """Runs (N, B), refused unless whole numbers from 0 of the right shape.

    Raises:
        InputError: another shape or type, or a negative count.
    """
    if runs_NB.shape != (inputs, blocks) or runs_NB.dtype != torch.int64:
        raise InputError(
            f"{inputs} inputs and {blocks} blocks need runs of shape ({inputs}, {blocks}) in "
            f"int64, got {tuple(runs_NB.shape)} in {runs_NB.dtype}"
        )
    if runs_NB.numel() and int(runs_NB.min()) < 0:
        raise InputError(f"a block runs 0 times or more, got {int(runs_NB.min())}")
    return runs_NB


def shuffled_runs(runs_NB: Tensor, generator: torch.Generator) -> Tensor:
    """Each input keeps its counts, at blocks drawn by chance: random skipping of equal length."""
    order_NB = torch.rand(runs_NB.shape, generator=generator).argsort(dim=1).to(runs_NB.device)
    return runs_NB.gather(1, order_NB)


def exchanged_runs(runs_NB: Tensor, generator: torch.Generator) -> Tensor:
    """Each input takes the path of another: the same paths, chosen without looking."""
    return runs_NB[torch.randperm(len(runs_NB), generator=generator).to(runs_NB.device)]


def random_runs(
    inputs: int,
    drop: Sequence[float],
    generator: torch.Generator,
    *,
    repeat: Sequence[float] | None = None,
) -> Tensor:
    """Runs (N, B) where block b is skipped with probability drop[b].

    Args:
        inputs: N.
        drop: B probabilities.
        generator: of the draws.
        repeat: B probabilities of running twice. None: never.

    Raises:
        InputError: probabilities out of range, or more than 1 together.
    """
    skip = torch.as_tensor(list(drop), dtype=torch.float64)
    twice = torch.zeros_like(skip) if repeat is None else torch.as_tensor(list(repeat)).double()
    if skip.shape != twice.shape or bool(((skip < 0) | (twice < 0) | (skip + twice > 1)).any()):
        raise InputError(
            "every block needs a probability of being skipped and one of being repeated, at most 1 "
            f"together, got {skip.tolist()} and {twice.tolist()}"
        )
    draw_NB = torch.rand(inputs, len(skip), generator=generator, dtype=torch.float64)
    return torch.where(draw_NB < skip, 0, torch.where(draw_NB < skip + twice, 2, 1))


def walk_paths(
    paths: Sequence[LayerPath], advance: Callable[[int, object], object], state: object
) -> Iterator[tuple[int, object]]:
    """The end state of every path, computing what paths have in common once.

    Args:
        paths: P of equal length, all different.
        advance: (block, state) → the state after one run of it.
        state: before the first block.

    Yields:
        (place in `paths`, state after the last block), in an order of its own.
    """
    yield from _walk(list(enumerate(paths)), 0, advance, state)


def _walk(
    paths: list[tuple[int, LayerPath]],
    at: int,
    advance: Callable[[int, object], object],
    state: object,
) -> Iterator[tuple[int, object]]:
    if at == len(paths[0][1]):
        for place, _ in paths:
            yield place, state
        return
    run = 0
    for count in sorted({path[at] for _, path in paths}):
        for _ in range(run, count):
            state = advance(at, state)
        run = count
        yield from _walk([item for item in paths if item[1][at] == count], at + 1, advance, state)


def _check_actions(actions: int) -> None:
    if actions < 2:
        raise InputError(f"a block has at least the actions skip and run, got {actions}")


def _refuse_many(places: int, edits: int, most: int) -> None:
    count, ways = 1, 1
    for size in range(1, most + 1):
        ways = ways * (places - size + 1) // size
        count += ways * edits**size
        if count > MOST_PATHS:
            raise InputError(
                f"at most {MOST_PATHS:,} paths are enumerated, {places} blocks with up to {most} "
                "edits have more: allow fewer edits, or use TreeSearch"
            )
