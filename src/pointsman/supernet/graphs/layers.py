"""Layers over a graph: weights of edges (attention), ways to gather neighbours, and both in one.

A layer computes activation(gather over neighbours j of i of a_ij W x_j). What a_ij is and how it is
gathered are choices of their own, so that the layers of many papers are combinations: GCN (Kipf and
Welling 2016, arXiv 1609.02907) is `symmetric` with "sum", GraphSAGE's (Hamilton et al. 2017, arXiv
1706.02216) are `constant` with "mean" or "max", GAT (Velickovic et al. 2017, arXiv 1710.10903) is
`Attentive` with "sum", here with one head.

Legend: N nodes, D features, K most neighbours of a node, itself among them.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.graphs.graph import Graph

Gathering = Literal["sum", "mean", "max"]
Attention = Literal["constant", "symmetric", "attentive", "cosine"]
Activation = Literal["identity", "relu", "tanh", "elu"]

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def constant(graph: Graph) -> Tensor:
    """(N, N) weight 1 of every edge."""
    return graph.adjacency_NN


def symmetric(graph: Graph) -> Tensor:
    """(N, N) 1 over the root of the product of both degrees (GCN)."""
    rooted_N = graph.degrees.rsqrt()
    return rooted_N[:, None] * graph.adjacency_NN * rooted_N


class Attentive(nn.Module):
    """Weights of edges from both ends: softmax over neighbours of leaky_relu(l . x_i + r . x_j).

    Args:
        graph: whose edges are weighed.
        features: D.
    """

    def __init__(self, graph: Graph, features: int) -> None:
        super().__init__()
        self.graph = graph
        self.ends_2D = nn.Parameter(torch.randn(2, features) / features**0.5)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, N), rows that sum to 1, 0 where there is no edge."""
        own_N, other_N = self.ends_2D @ x_ND.T
        scores_NN = functional.leaky_relu(own_N[:, None] + other_N, 0.2)
        return scores_NN.masked_fill(self.graph.adjacency_NN == 0, -torch.inf).softmax(dim=1)


class Cosine(nn.Module):
    """Weights of edges by the cosine of their ends' features, scaled like GCN's.

    Args:
        graph: whose edges are weighed.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, N), 0 where there is no edge."""
        unit_ND = functional.normalize(x_ND, dim=1)
        return (unit_ND @ unit_ND.T) * symmetric(self.graph)


class Gather(nn.Module):
    """Each node's weighted neighbours as one vector.

    Args:
        graph: who is whose neighbour.
        gathering: "sum", "mean" (the sum over the number of neighbours) or "max" (feature by
            feature, of the weighted neighbours).
        attention: weights of the edges.
        features: D; only "attentive" needs it.

    Raises:
        InputError: a way to gather or an attention that is none.
    """

    def __init__(
        self, graph: Graph, gathering: Gathering, attention: Attention, features: int
    ) -> None:
        super().__init__()
        for given, known in ((gathering, Gathering), (attention, Attention)):
            if given not in get_args(known):
                raise InputError(f"neighbours are gathered by {get_args(known)}, got {given!r}")
        self.graph, self.gathering, self.attention = graph, gathering, attention
        self.weigh: nn.Module | None = None
        if attention == "attentive":
            self.weigh = Attentive(graph, features)
        elif attention == "cosine":
            self.weigh = Cosine(graph)

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D)"""
        if self.weigh is not None:
            weights_NN = self.weigh(x_ND)
        else:
            fixed = constant if self.attention == "constant" else symmetric
            weights_NN = fixed(self.graph)
        if self.gathering == "max":
            near_NK = self.graph.neighbours_NK
            gathered_NKD = weights_NN.gather(1, near_NK)[..., None] * x_ND[near_NK]
            largest_ND: Tensor = gathered_NKD.amax(dim=1)
            return largest_ND
        summed_ND: Tensor = weights_NN @ x_ND
        return summed_ND / self.graph.degrees[:, None] if self.gathering == "mean" else summed_ND

    def extra_repr(self) -> str:
        """Shown where the module is printed."""
        return f"{self.gathering}, {self.attention}"


class GraphLayer(nn.Sequential):
    """A linear map, gathered neighbours and an activation, in this order.

    Args:
        graph: who is whose neighbour.
        inputs: features.
        outputs: features.
        gathering: see `Gather`.
        attention: see `Gather`.
        activation: after it.

    Raises:
        InputError: an option that is none.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: int,
        outputs: int,
        *,
        gathering: Gathering = "sum",
        attention: Attention = "symmetric",
        activation: Activation = "relu",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise InputError(f"an activation is one of {list(ACTIVATIONS)}, got {activation!r}")
        super().__init__(
            OrderedDict(
                linear=nn.Linear(inputs, outputs),
                gather=Gather(graph, gathering, attention, outputs),
                activation=ACTIVATIONS[activation](),
            )
        )
        self.statistics = (attention, activation)  # what decides how its outputs are distributed
