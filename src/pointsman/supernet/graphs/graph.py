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

    Attributes:
        adjacency_NN: with the diagonal.
        symmetric_NN: each edge over the root of the product of both degrees, as in GCN.
        neighbours_NK: numbers of the neighbours, filled up with the node itself.
        present_NK: bool, which of them are more than filling.

    Raises:
        InputError: it is not square, or holds anything but 0 and 1.
    """

    adjacency_NN: Tensor  # noqa: N815
    symmetric_NN: Tensor  # noqa: N815
    neighbours_NK: Tensor  # noqa: N815
    present_NK: Tensor  # noqa: N815

    def __init__(self, adjacency_NN: Tensor) -> None:
        super().__init__()
        square = adjacency_NN.ndim == 2 and len(set(adjacency_NN.shape)) == 1
        if not square or not bool(((adjacency_NN == 0) | (adjacency_NN == 1)).all()):
            raise InputError(
                f"a graph is a square matrix of 0 and 1, got the shape {tuple(adjacency_NN.shape)} "
                f"and values such as {adjacency_NN.flatten()[:4].tolist()}"
            )
        whole = adjacency_NN.to(torch.get_default_dtype()).clone().fill_diagonal_(1)
        rooted_N = whole.sum(dim=1).rsqrt()
        near_NK, present_NK = _neighbours(whole)
        self.register_buffer("adjacency_NN", whole, persistent=False)
        self.register_buffer("symmetric_NN", rooted_N[:, None] * whole * rooted_N, persistent=False)
        self.register_buffer("neighbours_NK", near_NK, persistent=False)
        self.register_buffer("present_NK", present_NK, persistent=False)

    @property
    def degrees(self) -> Tensor:
        """(N,) neighbours of each node, itself among them."""
        return self.adjacency_NN.sum(dim=1)

    def near(self, x_ND: Tensor) -> Tensor:
        """(N, K, D) features of each node's neighbours; its own where it has fewer than K."""
        near_N = self.neighbours_NK.flatten()
        return x_ND.index_select(0, near_N).view(*self.neighbours_NK.shape, -1)

    def dense(self, weights_NK: Tensor) -> Tensor:
        """(N, N) from weights of the neighbours as they are listed; 0 where there is none."""
        there_NK = weights_NK.masked_fill(~self.present_NK, 0.0)
        empty_NN = torch.zeros_like(self.adjacency_NN, dtype=weights_NK.dtype)
        return empty_NN.scatter_add(1, self.neighbours_NK, there_NK)

    def extra_repr(self) -> str:
        """Shown where the module is printed."""
        return f"nodes={len(self.adjacency_NN)}, edges={int(self.adjacency_NN.sum())}"


def _neighbours(adjacency_NN: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) neighbours of each node, itself where it has fewer, and which of them there are."""
    nodes, device = len(adjacency_NN), adjacency_NN.device
    degree_N = adjacency_NN.sum(dim=1).long()
    most = int(degree_N.max()) if nodes else 0
    order_NK = adjacency_NN.argsort(dim=1, descending=True, stable=True)[:, :most]
    present_NK = torch.arange(most, device=device) < degree_N[:, None]
    return torch.where(
        present_NK, order_NK, torch.arange(nodes, device=device)[:, None]
    ), present_NK
