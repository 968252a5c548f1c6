"""Layers over a graph: weights of edges (attention), ways to gather neighbours, and both in one.

A layer computes activation(gather over neighbours j of i of a_ij W x_j). What a_ij is and how it is
gathered are choices of their own, so that the layers of many papers are combinations: GCN (Kipf and
Welling 2016, arXiv 1609.02907) is "symmetric" with "sum", GraphSAGE's (Hamilton et al. 2017, arXiv
1706.02216) are "constant" with "mean" or "max", GAT (Velickovic et al. 2017, arXiv 1710.10903) is
"attentive" with "sum", here with one head.

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
        ends_N2 = x_ND @ self.ends_2D.T
        others_NK = self.graph.near(ends_N2[:, 1:])[..., 0]
        scores_NK = functional.leaky_relu(ends_N2[:, :1] + others_NK, 0.2)
        shares_NK = scores_NK.masked_fill(~self.graph.present_NK, -torch.inf).softmax(dim=1)
        return self.graph.dense(shares_NK)


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
        return (unit_ND @ unit_ND.T) * self.graph.symmetric_NN


class Gather(nn.Module):
    """Each node's weighted neighbours as one vector.

    Args:
        graph: who is whose neighbour.
        gathering: "sum", "mean" (the sum over the number of neighbours) or "max" (feature by
            feature, of the weighted neighbours).
        attention: weights of the edges: "constant" 1, "symmetric" as in GCN, "attentive" as in GAT,
            or "cosine" of the features.
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
        graph = self.graph
        if self.weigh is not None:
            weights_NN: Tensor = self.weigh(x_ND)
        else:
            constant = self.attention == "constant"
            weights_NN = graph.adjacency_NN if constant else graph.symmetric_NN
        if self.gathering == "max":
            weights_NK = weights_NN.gather(1, graph.neighbours_NK)
            return (weights_NK[..., None] * graph.near(x_ND)).amax(dim=1)
        summed_ND = weights_NN @ x_ND
        return summed_ND / graph.degrees[:, None] if self.gathering == "mean" else summed_ND

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
