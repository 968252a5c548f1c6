"""The tree along which the outputs of a binary layer cost least to compute from one another.

"MST-compression: Compressing and Accelerating Binary Neural Networks with Minimum Spanning Tree"
(2023, arXiv 2308.13735). With weights w_j of +1 and -1, and D_ij the positions where w_i and w_j
differ,

    y_j = y_i + 2 sum over k in D_ij of a_k w_jk,

so one output costs |D_ij| = (N - w_i . w_j) / 2 given another, instead of N. The cheapest way to
compute all of them, each from one other, is a minimum spanning tree of these distances. Its root is
computed in full.

What is certain is the identity, the tree, its cost and that training adds the length of the tree to
the loss. What is reconstructed: the term is the mean share of positions in which the weights at the
two ends of an edge differ; its gradient passes the signs; the tree is built again every few
updates. The root is the centre of the tree, which makes it as shallow as this tree can be; depth
itself is reported and not trained, as the paper's rule for it is not known to us.

Legend: O outputs, N positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.supernet.binary.layers import Binary


@dataclass(frozen=True, eq=False)
class SpanningTree:
    """Which output is computed from which.

    Attributes:
        parent: (O,) number of the output it is computed from; -1 for the root.
        order: (O,) the outputs, parents first.
        level: (O,) steps from the root.
        distance: (O,) positions in which it differs from its parent; N for the root.
    """

    parent: Tensor
    order: Tensor
    level: Tensor
    distance: Tensor

    @property
    def depth(self) -> int:
        """Steps from the root to the farthest output: what must happen one after another."""
        return int(self.level.max())

    @property
    def operations(self) -> int:
        """Products of signs for all outputs; without the tree there are O N."""
        return int(self.distance.sum())


def spanning_tree(signs_ON: Tensor) -> SpanningTree:
    """The minimum spanning tree of the outputs of a layer, from its centre.

    Args:
        signs_ON: of +1 and -1.

    Raises:
        InputError: no output, or weights that are neither +1 nor -1.
    """
    if signs_ON.ndim != 2 or not signs_ON.numel() or not bool((signs_ON.abs() == 1).all()):
        raise InputError(
            "a spanning tree is made for weights (outputs, positions) of +1 and -1, got shape "
            f"{tuple(signs_ON.shape)}: take Binary.signs"
        )
    w = signs_ON.detach().double()
    distance_OO = (w.shape[1] - w @ w.T) / 2
    neighbours = _tree_edges(distance_OO.numpy(force=True))
    root = _centre(neighbours)
    order, parents, levels = _from(neighbours, root)
    parent = torch.as_tensor(parents)
    distance = distance_OO.cpu()[torch.arange(len(w)), parent].round().long()
    distance[root] = w.shape[1]
    return SpanningTree(parent, torch.as_tensor(order), torch.as_tensor(levels), distance)


def _tree_edges(
    distance_OO: "np.ndarray[tuple[int, int], np.dtype[np.float64]]",
) -> list[list[int]]:
    """For each output, those it has an edge with."""
    from scipy.sparse.csgraph import minimum_spanning_tree

    # One more for each: SciPy reads a distance of 0 as no edge.
    rows, columns = minimum_spanning_tree(distance_OO + 1).nonzero()
    neighbours: list[list[int]] = [[] for _ in distance_OO]
    for one, other in zip(rows.tolist(), columns.tolist(), strict=True):
        neighbours[one].append(other)
        neighbours[other].append(one)
    return neighbours


def _from(neighbours: list[list[int]], root: int) -> tuple[list[int], list[int], list[int]]:
    """Order, parents and levels, level by level from a root."""
    parents, levels = [-1] * len(neighbours), [0] * len(neighbours)
    order = [root]
    for here in order:  # grows while it is read
        for there in neighbours[here]:
            if there != parents[here]:
                parents[there], levels[there] = here, levels[here] + 1
                order.append(there)
    return order, parents, levels


def _centre(neighbours: list[list[int]]) -> int:
    """The middle of the longest path: no other root gives a shallower tree."""
    end = _from(neighbours, 0)[0][-1]
    order, parents, levels = _from(neighbours, end)
    here = order[-1]
    for _ in range(levels[here] // 2):
        here = parents[here]
    return here


class TreeDistance:
    """The length of the trees of some layers, as a term of a loss.

    Args:
        layers: binary ones.
        every: after how many calls the trees are built again.

    Raises:
        InputError: no layer, or a count below 1.
    """

    def __init__(self, layers: Sequence[Binary], every: int = 10) -> None:
        if not layers or every < 1:
            raise InputError(
                f"a tree distance needs layers and is built again after one call or more, got "
                f"{len(layers)} layers and {every}"
            )
        self.layers, self.every = tuple(layers), every
        self._calls = 0
        self._edges: list[tuple[Tensor, Tensor]] = []

    def __call__(self) -> Tensor:
        """Mean over all edges of the share of positions that differ, in [0, 1]; a scalar."""
        signs = [layer.signs for layer in self.layers]
        if self._calls % self.every == 0:
            self._edges = [self._edges_of(signs_ON) for signs_ON in signs]
        self._calls += 1
        shares = [
            (1 - (signs_ON[one] * signs_ON[other]).mean(dim=1)) / 2
            for signs_ON, (one, other) in zip(signs, self._edges, strict=True)
        ]
        return torch.cat(shares).mean()

    def _edges_of(self, signs_ON: Tensor) -> tuple[Tensor, Tensor]:
        tree = spanning_tree(signs_ON)
        children = tree.order[1:].to(signs_ON.device)
        return children, tree.parent.to(signs_ON.device)[children]
