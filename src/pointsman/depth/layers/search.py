"""Which path through a network is best for each input, found offline.

Where paths are few, all are tried (`every_path`), each beginning computed once for all paths that
share it. Where they are many, a tree search tries some for each input:

Heakl et al., "Dr.LLM: Dynamic Layer Routing in LLMs" (2025, arXiv:2510.12773): nodes are paths, the
root is the whole network, a step skips or repeats one more block, and the next path to try is the
one of largest

    UCB(path) = Q / v + c sqrt(ln V / v) - lambda |path| / B

with Q the quality summed over the v visits at or below it, V those of its parent and |path| its
runs. Where we depart: a path opens more paths below it only as it is visited more (progressive
widening, Chaslot et al. 2008), else a small budget is spent before any path has three edits; a path
that several orders of edits lead to is one node; and as the network
is frozen, no path is tried twice on one input, so that the budget counts paths and a search that
has tried them all ends.

The search knows the targets: what it finds is a bound on routers and a label to train them on,
never a result.

Legend: N inputs, P paths, B blocks, A actions.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.depth.layers.execute import rows_of, run_paths
from pointsman.depth.layers.network import Quality, batches, correct
from pointsman.depth.layers.paths import (
    LayerPath,
    check_editable,
    edits_of,
    longest_gap,
    walk_paths,
    whole_path,
)
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import State

# a path for each of N inputs -> the quality (N,) that they reach
Evaluate = Callable[[Sequence[LayerPath]], np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Tried:
    """Paths tried and what they reached: NaN where a path was not tried on an input.

    Attributes:
        paths: P, all different; the whole network is one of them, tried on every input.
        quality: (P, N) in [0, 1], or NaN.
    """

    paths: tuple[LayerPath, ...]
    quality: np.ndarray[Any, Any]

    @property
    def whole(self) -> np.ndarray[Any, Any]:
        """(N,): what the network reaches as it was trained."""
        row = self.paths.index(whole_path(len(self.paths[0])))
        return np.asarray(self.quality[row], dtype=float)

    def counts(self) -> np.ndarray[Any, Any]:
        """(N,): paths tried on each input."""
        counts: np.ndarray[Any, Any] = np.isfinite(self.quality).sum(axis=0)
        return counts

    def best(
        self, *, least: float | None = None, tolerance: float = 0.0
    ) -> tuple[Tensor, np.ndarray[Any, Any]]:
        """The shortest path of each input that is good enough: labels for routers.

        Of equally short ones the one that is good enough for most inputs, then the one with fewer
        edits. Most inputs have many paths that are short and right, and labels that differ without
        a reason teach a router nothing: routers decide block by block and would mix them.

        Args:
            least: a path is good enough from this quality on, such as 1.0 for a right answer. None:
                from what the whole network reaches less the tolerance.
            tolerance: quality that may be lost against the whole network.

        Returns:
            Runs (N, B) int64, the whole network where no path is good enough; and found (N,) bool,
            whether one is.
        """
        bar = self.whole - tolerance if least is None else np.full(self.quality.shape[1], least)
        good = np.nan_to_num(self.quality, nan=-np.inf) >= bar - 1e-12
        # a path tried on few inputs says little: half an input more speaks for it, half against it
        usual = (good.sum(axis=1) + 0.5) / (np.isfinite(self.quality).sum(axis=1) + 1)
        order = np.lexsort([[edits_of(path) for path in self.paths], -usual])
        lengths = np.array([sum(path) for path in self.paths])[order, None]
        rank = np.where(good[order], lengths, np.inf)
        chosen, found = order[rank.argmin(axis=0)], good.any(axis=0)  # argmin takes the first
        table = torch.tensor(self.paths, dtype=torch.int64)
        whole = torch.ones_like(table[0])
        runs = torch.where(torch.as_tensor(found)[:, None], table[torch.as_tensor(chosen)], whole)
        return runs, found


@torch.no_grad()
def every_path(
    trunk: Trunk,
    x: State,
    y: Tensor,
    paths: Sequence[LayerPath],
    *,
    quality: Quality = correct,
) -> Tried:
    """All paths on all inputs; what paths begin with in common is computed once.

    Args:
        trunk: a network, run in evaluation mode.
        x: N inputs.
        y: N targets.
        paths: such as those of `enumerate_paths`; the whole network is added where it is missing.
        quality: logits, targets -> (n,) in [0, 1].

    Raises:
        InputError: paths of another length, or one given twice.
    """
    blocks = len(trunk.names)
    wanted = list(paths)
    if whole_path(blocks) not in wanted:
        wanted.append(whole_path(blocks))
    if len(set(wanted)) != len(wanted) or any(len(path) != blocks for path in wanted):
        raise InputError(f"paths are all different and have one count for each of {blocks} blocks")
    columns, start = [], 0
    with evaluating(*[trunk] if isinstance(trunk, nn.Module) else []):
        for part in batches(x):
            stop = start + rows_of(part)
            column = np.zeros((len(wanted), stop - start))
            for place, state in walk_paths(wanted, trunk.block, trunk.begin(part)):
                column[place] = quality(trunk.finish(state), y[start:stop]).double().cpu().numpy()
            columns.append(column)
            start = stop
    return Tried(tuple(wanted), np.concatenate(columns, axis=1))


class TreeSearch:
    """Paths worth trying for each input, found by upper confidence bounds under a budget.

    All inputs search side by side, so that each step runs the network once on a batch in which
    every input takes the path that its own tree proposes.

    Args:
        simulations: paths tried on each input, the whole network included.
        exploration: c.
        length_weight: lambda: how much shorter paths are preferred.
        widening: a path with v visits has at most v to this power open paths below it; 1 tries all
            edits of a path before it goes deeper, 0 follows one path down.
        actions: A.
        editable: blocks that may be skipped or repeated. None: all.
        max_gap: the most skips in a row. None: any number.
        max_length: the most runs of a path, as a multiple of B.
        seed: of the order in which new paths are tried.

    Raises:
        InputError: a budget below one.
    """

    def __init__(
        self,
        *,
        simulations: int = 50,
        exploration: float = 1.8,
        length_weight: float = 3.0,
        widening: float = 0.35,
        actions: int = 3,
        editable: Collection[int] | None = None,
        max_gap: int | None = 2,
        max_length: float = 2.0,
        seed: int = 0,
    ) -> None:
        if simulations < 1:
            raise InputError(f"a search tries at least one path, got {simulations}")
        self.simulations, self.exploration = simulations, exploration
        self.length_weight, self.widening, self.actions = length_weight, widening, actions
        self.editable, self.max_gap, self.max_length = editable, max_gap, max_length
        self.seed = seed

    def search(self, trunk: Trunk, x: State, y: Tensor, *, quality: Quality = correct) -> Tried:
        """Search on a network.

        Args:
            trunk: run in evaluation mode.
            x: N inputs.
            y: N targets.
            quality: logits, targets -> (n,) in [0, 1].
        """
        parts, starts = batches(x), [0]
        for part in parts:
            starts.append(starts[-1] + rows_of(part))

        @torch.no_grad()
        def evaluate(paths: Sequence[LayerPath]) -> np.ndarray[Any, Any]:
            runs_NB, found = torch.tensor(paths, dtype=torch.int64), []
            for part, (start, stop) in zip(parts, pairwise(starts), strict=True):
                output = run_paths(trunk, part, runs_NB[start:stop]).output
                found.append(quality(output, y[start:stop]).double().cpu().numpy())
            return np.concatenate(found)

        with evaluating(*[trunk] if isinstance(trunk, nn.Module) else []):
            return self.explore(evaluate, rows_of(x), len(trunk.names))

    def explore(self, evaluate: Evaluate, inputs: int, blocks: int) -> Tried:
        """Search with any evaluation of one path for each input.

        Args:
            evaluate: a path for each of the inputs -> quality (N,).
            inputs: N.
            blocks: B.
        """
        rules = _Rules(self, blocks)
        rng = np.random.default_rng(self.seed)
        trees = [_Tree(rules, int(rng.integers(2**63))) for _ in range(inputs)]
        for _ in range(self.simulations):
            trails = [tree.descend() for tree in trees]
            if not any(trails):
                break  # every path of every tree has been tried
            reached = evaluate([trail[-1] if trail else rules.root for trail in trails])
            for tree, trail, value in zip(trees, trails, reached, strict=True):
                if trail:
                    tree.learn(trail, float(value))
        return _tried(trees, rules.root)


class _Rules:
    """What the trees of one search share: which paths follow which."""

    def __init__(self, search: TreeSearch, blocks: int) -> None:
        self.search, self.root = search, whole_path(blocks)
        self.places = check_editable(search.editable, blocks)
        self.longest = search.max_length * blocks
        self._next: dict[LayerPath, tuple[LayerPath, ...]] = {}

    def following(self, path: LayerPath) -> tuple[LayerPath, ...]:
        """The paths with one more edit that keep the rules."""
        if path not in self._next:
            found = []
            for place in self.places:
                if path[place] != 1:
                    continue
                for count in range(self.search.actions):
                    edited = (*path[:place], count, *path[place + 1 :])
                    if count != 1 and self._legal(edited):
                        found.append(edited)
            self._next[path] = tuple(found)
        return self._next[path]

    def _legal(self, path: LayerPath) -> bool:
        gap = self.search.max_gap
        return sum(path) <= self.longest and (gap is None or longest_gap(path) <= gap)


class _Tree:
    """One input's search."""

    def __init__(self, rules: _Rules, seed: int) -> None:
        self.rules, self.rng = rules, np.random.default_rng(seed)
        self.visits: dict[LayerPath, int] = {}
        self.total: dict[LayerPath, float] = {}
        self.quality: dict[LayerPath, float] = {}
        self.done: set[LayerPath] = set()  # all at or below it has been tried

    def descend(self) -> list[LayerPath]:
        """From the root to a path not tried yet; empty where there is none."""
        trail = [self.rules.root]
        while trail[-1] in self.quality:
            open_ = [path for path in self.rules.following(trail[-1]) if path not in self.done]
            if not open_:
                self.done.add(trail[-1])
                trail.pop()
                if not trail:
                    return []
                continue
            known = [path for path in open_ if path in self.quality]
            if len(known) < len(open_) and len(known) < self._width(trail[-1]):
                fresh = [path for path in open_ if path not in self.quality]
                trail.append(fresh[int(self.rng.integers(len(fresh)))])
            else:
                trail.append(max(known, key=lambda path: self._bound(path, trail[-1])))
        return trail

    def _width(self, path: LayerPath) -> float:
        """How many paths below this one may be open: the more visits, the more."""
        return max(1.0, math.pow(self.visits[path], self.rules.search.widening))

    def _bound(self, path: LayerPath, parent: LayerPath) -> float:
        visits, search = self.visits[path], self.rules.search
        # a parent may have fewer visits than a child that other parents lead to as well
        seen = max(self.visits[parent], visits)
        wide = search.exploration * math.sqrt(math.log(max(seen, 1)) / visits)
        length = search.length_weight * sum(path) / len(path)
        return self.total[path] / visits + wide - length

    def learn(self, trail: list[LayerPath], value: float) -> None:
        """Remember what the last path of the trail reached, at all paths on the way."""
        self.quality[trail[-1]] = value
        for path in trail:
            self.visits[path] = self.visits.get(path, 0) + 1
            self.total[path] = self.total.get(path, 0.0) + value


def _tried(trees: Sequence[_Tree], root: LayerPath) -> Tried:
    paths = {root: None} | {path: None for tree in trees for path in tree.quality}
    place = {path: at for at, path in enumerate(paths)}
    quality = np.full((len(place), len(trees)), np.nan)
    for column, tree in enumerate(trees):
        for path, value in tree.quality.items():
            quality[place[path], column] = value
    return Tried(tuple(paths), quality)
