"""A graph of 300 nodes in three communities, for claims on networks over graphs.

A stochastic block model: two nodes of one community are joined more often than two of different
ones, and every node has weak features under much noise. Neither the features alone nor the edges
alone tell the community; a network that averages over neighbours tells it for most nodes.

Legend: N nodes, D features, C communities.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pointsman.supernet.graphs import Graph, GraphLayer

NODES, FEATURES, COMMUNITIES = 300, 16, 3
WITHIN, BETWEEN = 0.05, 0.012  # chance of an edge
SIGNAL = 0.35  # size of a community's mean in each feature, in units of the noise
TRAIN, CALIBRATION = 60, 120  # nodes; the others are the test part
RATE, DECAY, UPDATES = 3e-2, 5e-3, 40


@dataclass(frozen=True, eq=False)
class World:
    """One graph with its labels and parts.

    Attributes:
        graph: the edges.
        x: (N, D) features.
        y: (N,) communities.
        train: (N,) bool, nodes whose labels weights are fitted to.
        calibration: (N,) bool, nodes that choices are made on.
        test: (N,) bool, the others.
    """

    graph: Graph
    x: Tensor
    y: Tensor
    train: Tensor
    calibration: Tensor
    test: Tensor

    def shuffled(self, seed: int) -> "World":
        """The same graph with labels in random order: nothing is left to learn."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(seed))
        return World(self.graph, self.x, self.y[order], self.train, self.calibration, self.test)


def world(seed: int) -> World:
    """The graph of a seed."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(NODES) % COMMUNITIES
    chance_NN = torch.where(y[:, None] == y, WITHIN, BETWEEN)
    upper_NN = (torch.rand(NODES, NODES, generator=generator) < chance_NN).triu(1)
    means_CD = SIGNAL * torch.randn(COMMUNITIES, FEATURES, generator=generator)
    x = means_CD[y] + torch.randn(NODES, FEATURES, generator=generator)
    place = torch.randperm(NODES, generator=generator)
    train, calibration = place < TRAIN, (place >= TRAIN) & (place < TRAIN + CALIBRATION)
    return World(
        Graph((upper_NN | upper_NN.T).float()), x, y, train, calibration, ~(train | calibration)
    )


def classifier(
    place: World, seed: int, *layers: Mapping[str, str], width: int = 16
) -> nn.Sequential:
    """Graph layers with these options, and a linear map to the communities.

    Args:
        place: whose graph it works on.
        seed: of the weights.
        *layers: options of each `GraphLayer`.
        width: features between layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [FEATURES] + [width] * len(layers)
        built = [
            GraphLayer(place.graph, size, width, **options)  # type: ignore[arg-type]
            for size, options in zip(sizes, layers, strict=False)
        ]
        return nn.Sequential(*built, nn.Linear(sizes[-1], COMMUNITIES))


def loss(network: nn.Module, place: World, part: Tensor) -> Tensor:
    """Cross-entropy on the nodes of a part."""
    return cross_entropy(network(place.x)[part], place.y[part])


def fit(network: nn.Module, place: World, *, updates: int = UPDATES) -> nn.Module:
    """Train on the training nodes, all of them in each update; evaluation mode afterwards."""
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    network.train()
    for _ in range(updates):
        optimiser.zero_grad()
        loss(network, place, place.train).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, place: World, part: Tensor) -> float:
    """Share of a part's nodes whose community is told."""
    right = network(place.x).argmax(dim=1) == place.y
    return float(right[part].float().mean())
