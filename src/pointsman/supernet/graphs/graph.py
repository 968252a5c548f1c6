"""A graph in dense form: the matrices that layers multiply with, and its lists of neighbours.

Legend: N nodes, K most neighbours of a node, itself among them.
"""

import torch
from torch import Tensor, nn

from pointsman.errors import InputError


class Graph(nn.Module):
    """The edges of one graph, which all layers over it share; nothing of it is trained or saved.

    Every node counts as its own neighbour. Meant for graphs of up to a few thousand nodes, where
    dense matrices are quicker than lists of edges.

    Args:
        adjacency_NN: 1 where row i hears from column j, else 0; the diagonal is set to 1.

    Raises:
        InputError: it is not square, or holds anything but 0 and 1.
    """

    adjacency_NN: Tensor  # noqa: N815
    neighbours_NK: Tensor  # noqa: N815

    def __init__(self, adjacency_NN: Tensor) -> None:
        super().__init__()
        square = adjacency_NN.ndim == 2 and len(set(adjacency_NN.shape)) == 1
        if not square or not bool(((adjacency_NN == 0) | (adjacency_NN == 1)).all()):
            raise InputError(
                f"a graph is a square matrix of 0 and 1, got the shape {tuple(adjacency_NN.shape)} "
                f"and values such as {adjacency_NN.flatten()[:4].tolist()}"
            )
        whole = adjacency_NN.to(torch.get_default_dtype()).clone().fill_diagonal_(1)
        self.register_buffer("adjacency_NN", whole, persistent=False)
        self.register_buffer("neighbours_NK", _neighbours(whole), persistent=False)

    @property
    def degrees(self) -> Tensor:
        """(N,) neighbours of each node, itself among them."""
        return self.adjacency_NN.sum(dim=1)

    def extra_repr(self) -> str:
        """Shown where the module is printed."""
        return f"nodes={len(self.adjacency_NN)}, edges={int(self.adjacency_NN.sum())}"


def _neighbours(adjacency_NN: Tensor) -> Tensor:
    """(N, K) numbers of the neighbours of each node; the node itself where it has fewer."""
    nodes = len(adjacency_NN)
    most = int(adjacency_NN.sum(dim=1).max())
    found = torch.arange(nodes, device=adjacency_NN.device)[:, None].repeat(1, most)
    for node, row in enumerate(adjacency_NN):
        near = row.nonzero().flatten()
        found[node, : len(near)] = near
    return found
