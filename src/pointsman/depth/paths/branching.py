"""Which layers tasks share: every node of a layered network picks its parent, and a tree is found.

After Guo, Lee & Ulbricht, "Learning to Branch for Multi-Task Learning" (2020, arXiv:2006.01895).
Level l holds copies of one layer. Node j of level l+1 reads one node of level l, drawn with

    d_j = one_hot(argmax_i(θ_ij + g_i)),    g_i Gumbel noise,  gradient of softmax((θ_j + g) / τ)

and the last level is one head per task, so that the draws of all nodes are a tree. Logits θ and
weights are trained together on the sum of the tasks' losses; in the end every node takes its likely
parent, what nobody reads is deleted, and the tree is trained from scratch.

Where we depart: a task's loss counts relative to its own running mean, and the expected number of
nodes can be charged for, which the paper leaves to the width of the levels. Temperatures and the
length of the warm-up, before which logits stand still, were not to be had. The default is none: in
small trials nodes that all tasks had shared for long were too alike for the tasks to part.

Legend: G tasks, L levels, P parents and J children at one level, n inputs.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.cost import Cost, count_flops
from pointsman.depth.paths.choice import gumbel_choice
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.route import Route


@dataclass(frozen=True)
class Tree:
    """Who reads whom: parents[l][j] is the node of level l that child j of level l + 1 reads.

    The children after the last level are the heads of the G tasks.
    """

    parents: tuple[tuple[int, ...], ...]

    def paths(self) -> tuple[tuple[int, ...], ...]:
        """G paths of L nodes: what each task's input goes through, from the first level on."""
        paths = []
        for task in range(len(self.parents[-1])):
            path, node = [], task
            for level in reversed(self.parents):
                node = level[node]
                path.append(node)
            paths.append(tuple(reversed(path)))
        return tuple(paths)

    def used(self) -> tuple[tuple[int, ...], ...]:
        """The nodes of each level that some task goes through, ascending."""
        paths = self.paths()
        return tuple(
            tuple(sorted({path[level] for path in paths})) for level in range(len(self.parents))
        )

    def groups(self, level: int) -> tuple[tuple[int, ...], ...]:
        """The tasks that share each node of a level, those of the first task first."""
        found: dict[int, list[int]] = {}
        for task, path in enumerate(self.paths()):
            found.setdefault(path[level], []).append(task)
        return tuple(tuple(tasks) for tasks in found.values())


class BranchedNetwork(nn.Module):
    """A network in the shape of a tree: every node runs once, and only for tasks that are asked.

    Args:
        levels: L lists of nodes, all of them used by the tree; the first level reads the input.
        heads: G modules.
        tree: over these nodes.

    Raises:
        InputError: a tree that does not fit the levels.
    """

    def __init__(
        self, levels: Sequence[Sequence[nn.Module]], heads: Sequence[nn.Module], tree: Tree
    ) -> None:
        super().__init__()
        _check_tree(tree, [len(level) for level in levels], len(heads))
        self.levels = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.heads = nn.ModuleList(heads)
        self.tree = tree

    def forward(self, x: Tensor, tasks: Sequence[int] | None = None) -> list[Tensor]:
        """Outputs of the tasks asked, in their order; None: of all.

        Raises:
            InputError: a task that does not exist.
        """
        tasks = _tasks(tasks, len(self.heads))
        return _walk(self.levels, self.heads, self.tree, x, tasks)

    def route(self) -> Route:
        """Which modules each task runs: G inputs, all nodes level by level and the heads branches.

        `route().cost(node_costs(example))` is what each task spends when it is asked alone.
        """
        starts = np.cumsum([0, *(len(level) for level in self.levels)])  # type: ignore[arg-type]
        rows = [
            [*(start + node for start, node in zip(starts, path, strict=False)), starts[-1] + task]
            for task, path in enumerate(self.tree.paths())
        ]
        return Route.from_indices(
            torch.tensor(rows, dtype=torch.int64), num_branches=int(starts[-1]) + len(self.heads)
        )

    def node_costs(self, example: Tensor) -> Cost:
        """MFLOPs per input of every node, level by level, and of every head; its sum: all tasks.

        Raises:
            InputError: an empty example.
        """
        if len(example) == 0:
            raise InputError("FLOPs are counted on at least one input, got an empty example")
        amounts: list[float] = []

        def counted(module: nn.Module, *inputs: Tensor) -> Tensor:
            amounts.append(float(count_flops(module, *inputs)) / len(example))
            output: Tensor = module(*inputs)
            return output

        with evaluating(self), torch.no_grad():
            values = [example]
            for at, level in enumerate(self.levels):
                assert isinstance(level, nn.ModuleList)
                read = [0] * len(level) if at == 0 else self.tree.parents[at - 1]
                values = [counted(node, values[p]) for node, p in zip(level, read, strict=True)]
            for head, p in zip(self.heads, self.tree.parents[-1], strict=True):
                counted(head, values[p])
        return Cost(np.array(amounts), "MFLOPs")


class BranchingNetwork(nn.Module):
    """The space of trees: levels of nodes, heads, and the logits by which children pick parents.

    Args:
        levels: L lists of at least one node; nodes of a level take and give the same shapes. The
            first level reads the input: one node there is a trunk that all tasks share.
        heads: one for each of the G tasks.

    Attributes:
        logits: L parameters (J, P), 0 at first: every parent is as likely.

    Raises:
        InputError: no level, a level without nodes, or no head.
    """

    def __init__(self, levels: Sequence[Sequence[nn.Module]], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        if not levels or not all(levels) or not heads:
            sizes = [len(level) for level in levels]
            raise InputError(
                "a space of trees needs levels of at least one node and at least one head, "
                f"got levels of {sizes} and {len(heads)} heads"
            )
        self.levels = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.heads = nn.ModuleList(heads)
        children = [*(len(level) for level in levels[1:]), len(heads)]
        self.logits = nn.ParameterList(
            nn.Parameter(torch.zeros(count, len(level)))
            for level, count in zip(levels, children, strict=True)
        )

    def forward(self, x: Tensor, tasks: Sequence[int] | None = None) -> list[Tensor]:
        """Outputs of the tasks asked under the likely tree, see `tree`.

        Raises:
            InputError: a task that does not exist.
        """
        tasks = _tasks(tasks, len(self.heads))
        return _walk(self.levels, self.heads, self.tree(), x, tasks)

    def sampled(
        self, x: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Outputs of all tasks under a tree that is drawn; gradients reach the logits.

        Every node runs. Over all inputs of the batch the tree is one.
        """
        values: list[Tensor] = [x]
        for at, level in enumerate([*self.levels, self.heads]):
            assert isinstance(level, nn.ModuleList)
            if at == 0:
                values = [node(x) for node in level]
                continue
            choice_JP = gumbel_choice(
                self.logits[at - 1], temperature=temperature, generator=generator
            )
            stacked = torch.stack(values)
            values = [
                node(torch.tensordot(choice_P, stacked, dims=1))
                for node, choice_P in zip(level, choice_JP, strict=True)
            ]
        return values

    def probabilities(self) -> list[Tensor]:
        """L tables (J, P): how likely each child picks each parent; no gradient."""
        return [logits.detach().softmax(dim=1) for logits in self.logits]

    def tree(self) -> Tree:
        """Every child with its likely parent, the first of equals."""
        return Tree(tuple(tuple(table.argmax(dim=1).tolist()) for table in self.probabilities()))

    def expected_nodes(self) -> Tensor:
        """Scalar: how many nodes some task goes through, expected over the draws; gradients flow.

        Children are taken as independent, which overlooks that those of one child come together.
        """
        read_J = torch.ones(len(self.heads))
        total: Tensor = self.logits[0].new_zeros(())
        for logits in reversed(list(self.logits)):
            picked_JP = logits.softmax(dim=1) * read_J.to(logits)[:, None]
            read_J = 1 - (1 - picked_JP).prod(dim=0)
            total = total + read_J.sum()
        return total

    def extract(self, tree: Tree | None = None, *, fresh: bool = False) -> BranchedNetwork:
        """A tree as a plain network, without the nodes that nobody reads.

        Args:
            tree: over the levels of this network; None: the likely one.
            fresh: with new weights, to be trained from scratch, as those found in the search fit
                the trees that were sampled. Modules make them by `reset_parameters`.

        Raises:
            InputError: a tree that does not fit the levels.
        """
        tree = self.tree() if tree is None else tree
        _check_tree(tree, [len(level) for level in self.levels], len(self.heads))  # type: ignore[arg-type]
        used = tree.used()
        place = [{node: at for at, node in enumerate(level)} for level in used]
        children = [*used[1:], range(len(self.heads))]
        parents = tuple(
            tuple(place[at][level[child]] for child in children[at])
            for at, level in enumerate(tree.parents)
        )
        network = BranchedNetwork(
            [
                [copy.deepcopy(nodes[node]) for node in kept]  # type: ignore[index]
                for nodes, kept in zip(self.levels, used, strict=True)
            ],
            [copy.deepcopy(head) for head in self.heads],
            Tree(parents),
        )
        if fresh:
            for module in network.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        return network


def _tasks(tasks: Sequence[int] | None, count: int) -> Sequence[int]:
    if tasks is None:
        return range(count)
    for task in tasks:
        if not 0 <= task < count:
            raise InputError(f"tasks are 0 to {count - 1}, got {task}")
    return tasks


def _check_tree(tree: Tree, levels: Sequence[int], tasks: int) -> None:
    children = [*levels[1:], tasks]
    fits = [len(level) for level in tree.parents] == children and all(
        0 <= parent < size
        for level, size in zip(tree.parents, levels, strict=True)
        for parent in level
    )
    if not fits:
        raise InputError(
            f"a tree over levels of {list(levels)} nodes and {tasks} tasks has {children} "
            f"children with a parent each, got {tree.parents}"
        )


def _walk(
    levels: nn.ModuleList, heads: nn.ModuleList, tree: Tree, x: Tensor, tasks: Sequence[int]
) -> list[Tensor]:
    """Outputs of some tasks; nodes that several of them share run once."""
    paths = tree.paths()
    values: dict[int, Tensor] = {}
    for at, nodes in enumerate(levels):
        read = {paths[task][at]: paths[task][at - 1] if at else -1 for task in tasks}
        assert isinstance(nodes, nn.ModuleList)
        values = {node: nodes[node](values[p] if at else x) for node, p in read.items()}
    return [heads[task](values[paths[task][-1]]) for task in tasks]
