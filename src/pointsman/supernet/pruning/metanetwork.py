"""A network that rewrites networks so that they lose less when they are pruned.

Liu et al., "Meta Pruning via Graph Metanetworks: A Meta Learning Framework for Network Pruning"
(2025, arXiv 2506.12041). A network is read as a graph: a node for each channel, an edge for each
kernel between two channels. A graph network (the metanetwork) reads it and gives a network of the
same shape, old weights + scale x change. It is trained on a few trained networks, by the loss of
the networks that it gives, and a penalty on them whose gradient is

    strength gamma_g w,   gamma_g = alpha^((most - |w_g|) / (most - least))

for the weights w_g of each unit, with the smallest and largest norm of its layer: the weaker a unit
is, the more it is pushed to zero. A new network then needs one pass, some fine-tuning, and pruning
by norm.

Where we depart: networks are chains of linear layers and convolutions, with batch normalisation or
without; shortcuts, for which the authors keep a second set of node features, are refused. Running
statistics are read and not changed. The number of training steps is given, where the authors choose
among epochs by the pruning curve of a network held out.

Legend: O, I channels out and in; K positions of a kernel, the largest in the network; F features of
a node; H hidden size.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pointsman.errors import InputError

SCALE = 0.01  # as published: the metanetwork starts near the identity
NODE = (0.0, 1.0, 0.0, 0.0, 1.0)  # bias; scale, shift, mean and variance of batch normalisation
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Weights = dict[str, Tensor]  # by name, as functional_call takes them


@dataclass(frozen=True, eq=False)
class Graph:
    """A chain of layers as numbers.

    Attributes:
        nodes: for the inputs and for each layer, (O, F) features of the channels.
        edges: for each layer, (O, I, K) kernels, filled with zeros.
        weighed: for each layer, (3,) 1 where bias, scale and shift stand for weights of the
            network, 0 where it has none and the feature is a constant.
    """

    nodes: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    weighed: tuple[Tensor, ...]


class Chain:
    """How a network and its graph correspond: nothing is lost in either direction.

    Args:
        net: whose linear layers and convolutions follow one another in order of definition, each
            with at most one batch normalisation behind it.

    Raises:
        InputError: layers that do not fit one another, so that this is no chain, or that have
            weights of another kind.
    """

    def __init__(self, net: nn.Module) -> None:
        self.layers: list[tuple[str, nn.Linear | nn.Conv2d]] = []
        self.norms: list[str | None] = []
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.layers.append((name, module))
                self.norms.append(None)
            elif isinstance(module, BATCH_NORMS) and self.layers and self.norms[-1] is None:
                self.norms[-1] = name
            elif module._parameters:
                raise InputError(
                    "a metanetwork reads chains of nn.Linear and nn.Conv2d with batch "
                    f"normalisation behind them, got {type(module).__name__} at {name!r}"
                )
        if len(self.layers) < 2:
            raise InputError(f"a chain has two layers or more, got {len(self.layers)}")
        self.channels = self._channels()
        sizes = [
            layer.weight[0].numel() // before
            for (_, layer), before in zip(self.layers, self.channels, strict=False)
        ]
        self.positions = max(sizes)

    def _channels(self) -> list[int]:
        """Of the inputs and of every layer."""
        found = [self.layers[0][1].weight.shape[1]]
        for name, layer in self.layers:
            if layer.weight.shape[1] % found[-1] or getattr(layer, "groups", 1) > 1:
                raise InputError(
                    f"in a chain a layer takes what the one before gives, {name!r} takes "
                    f"{layer.weight.shape[1]} and gets {found[-1]} channels"
                )
            found.append(layer.weight.shape[0])
        return found

    def graph(self, net: nn.Module) -> Graph:
        """Of a network of this shape, with its weights, without gradient."""
        values = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        values = {name: value.detach() for name, value in values.items()}
        plain = values[f"{self.layers[0][0]}.weight"].new_tensor(NODE)
        nodes, edges, weighed = [plain.repeat(self.channels[0], 1)], [], []
        for (name, _), norm, before in zip(self.layers, self.norms, self.channels, strict=False):
            weight = values[f"{name}.weight"]
            kernel_OIK = weight.reshape(len(weight), before, -1)
            edges.append(nn.functional.pad(kernel_OIK, (0, self.positions - kernel_OIK.shape[2])))
            node_OF = plain.repeat(len(weight), 1)
            there = [source in values for source in self._sources(name, norm)]
            for at, source in enumerate(self._sources(name, norm)):
                if there[at]:
                    node_OF[:, at] = values[source]
            nodes.append(node_OF)
            weighed.append(plain.new_tensor([*there, False, False][:3]))
        return Graph(tuple(nodes), tuple(edges), tuple(weighed))

    @staticmethod
    def _sources(name: str, norm: str | None) -> tuple[str, ...]:
        tensors = ("weight", "bias", "running_mean", "running_var")
        return (f"{name}.bias", *(f"{norm}.{tensor}" for tensor in tensors if norm is not None))

    def weights(self, net: nn.Module, graph: Graph) -> Weights:
        """The parameters that a graph stands for, with its gradient."""
        shapes = {name: value.shape for name, value in net.named_parameters()}
        found = {}
        triples = zip(self.layers, self.norms, graph.edges, graph.nodes[1:], strict=True)
        for (name, layer), norm, edge_OIK, node_OF in triples:
            used = layer.weight[0].numel() // edge_OIK.shape[1]
            found[f"{name}.weight"] = edge_OIK[..., :used].reshape(shapes[f"{name}.weight"])
            for at, source in enumerate(self._sources(name, norm)[:3]):
                if source in shapes:
                    found[source] = node_OF[:, at]
        return found


class MetaNetwork(nn.Module):
    """Graph to graph of the same shape, alike for every order of the hidden channels.

    Args:
        positions: K of the networks it is for.
        hidden: H.
        rounds: of messages along edges, in both directions.
        scale: of what it changes.
    """

    def __init__(
        self, positions: int, hidden: int = 16, rounds: int = 3, scale: float = SCALE
    ) -> None:
        super().__init__()
        self.scale = scale
        self.node_in, self.edge_in = nn.Linear(len(NODE), hidden), nn.Linear(positions, hidden)
        self.rounds = nn.ModuleList(_Round(hidden) for _ in range(rounds))
        self.node_out, self.edge_out = nn.Linear(hidden, 3), nn.Linear(hidden, positions)

    def forward(self, graph: Graph) -> Graph:
        """The changed graph; running statistics stay."""
        nodes = [self.node_in(node) for node in graph.nodes]
        edges = [self.edge_in(edge) for edge in graph.edges]
        for round_ in self.rounds:
            nodes, edges = round_(nodes, edges)
        changed = [
            torch.cat([old[:, :3] + self.scale * weighed * self.node_out(new), old[:, 3:]], dim=1)
            for old, new, weighed in zip(graph.nodes[1:], nodes[1:], graph.weighed, strict=True)
        ]
        kernels = [
            torch.where(
                old == 0, old, old + self.scale * self.edge_out(new)
            )  # what is filled up stays
            for old, new in zip(graph.edges, edges, strict=True)
        ]
        return Graph((graph.nodes[0], *changed), tuple(kernels), graph.weighed)


class _Round(nn.Module):
    """Messages to all nodes along and against the edges, then new edges."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.target = nn.Linear(hidden, hidden)
        self.node = nn.Sequential(
            nn.Linear(9 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.edge = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.ends = nn.Linear(2 * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        # Against an edge, half of its features change their sign.
        self.register_buffer("turned", torch.where(torch.arange(hidden) < hidden // 2, -1.0, 1.0))

    def forward(
        self, nodes: list[Tensor], edges: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        turned = self.get_buffer("turned")
        nothing = [node.new_zeros(len(node), 4 * node.shape[1]) for node in nodes]
        came, back = nothing[:1], []
        for at, edge_OIH in enumerate(edges):
            below, above = nodes[at], nodes[at + 1]
            came.append(_gathered(self.target(above)[:, None] * below * edge_OIH, dim=1))
            back.append(_gathered(self.target(below) * above[:, None] * edge_OIH * turned, dim=0))
        back.append(nothing[-1])
        nodes = [
            self.norm(node + self.node(torch.cat(read, dim=1)))
            for node, *read in zip(nodes, nodes, came, back, strict=True)
        ]
        first, second = self.ends.weight.chunk(2, dim=1)
        edges = [
            edge + self.edge(edge + (above @ second.T)[:, None] + below @ first.T)
            for edge, below, above in zip(edges, nodes, nodes[1:], strict=False)
        ]
        return nodes, edges


def _gathered(messages: Tensor, dim: int) -> Tensor:
    """Mean, deviation, largest and smallest over one end, (channels, 4 H)."""
    deviation = (messages.var(dim=dim, correction=0) + 1e-6).sqrt()
    parts = (messages.mean(dim=dim), deviation, messages.amax(dim=dim), messages.amin(dim=dim))
    return torch.cat(parts, dim=-1)


def sparsity(graph: Graph, alpha: float = 16.0) -> Tensor:
    """Half the sum of gamma_g |w_g|^2 over all hidden units, whose gradient the paper gives.

    A unit's weights are its incoming and outgoing kernels, its bias, scale and shift.

    Args:
        graph: of the network to be pruned.
        alpha: by how much more the weakest unit of a layer is pushed than the strongest.
    """
    total = graph.edges[0].new_zeros(())
    for at in range(len(graph.edges) - 1):
        node_OF = graph.weighed[at] * graph.nodes[at + 1][:, :3]
        came, goes = graph.edges[at].square().sum((1, 2)), graph.edges[at + 1].square().sum((0, 2))
        square_O = came + goes + node_OF.square().sum(dim=1)
        norm_O = square_O.detach().sqrt()
        least, most = norm_O.min(), norm_O.max()
        gamma_O = alpha ** ((most - norm_O) / (most - least).clamp_min(1e-12))
        total = total + 0.5 * (gamma_O * square_O).sum()
    return total


def train_metanetwork(
    networks: Sequence[nn.Module],
    loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    *,
    steps: int,
    strength: float = 1e-3,
    alpha: float = 16.0,
    rate: float = 1e-3,
    hidden: int = 16,
    rounds: int = 3,
    scale: float = SCALE,
    seed: int = 0,
) -> MetaNetwork:
    """Learn to rewrite from a few trained networks of one shape, taken in turns.

    Args:
        networks: trained; stay as they are.
        loss: of a network as a function of inputs, on a batch of its choice.
        steps: of AdamW, whose rate falls to 0 along a cosine.
        strength: of the sparsity.
        alpha: see `sparsity`.
        rate: at the start.
        hidden: size of the metanetwork's features.
        rounds: of its messages.
        scale: of what it changes: `SCALE` suits weights of large networks, which are small.
        seed: of its weights.

    Raises:
        InputError: no network, fewer than one step, or a network that is no chain.
    """
    if not networks or steps < 1:
        raise InputError(f"give a network and a step at least, got {len(networks)} and {steps}")
    chain = Chain(networks[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        meta = MetaNetwork(chain.positions, hidden, rounds, scale)
    optimiser = torch.optim.AdamW(meta.parameters(), rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    graphs = [(net, chain.graph(net)) for net in networks]
    for net, graph in islice(cycle(graphs), steps):
        changed = meta(graph)
        weights = chain.weights(net, changed)

        def run(x: Tensor, net: nn.Module = net, weights: Weights = weights) -> Tensor:
            answer: Tensor = functional_call(net, weights, (x,))
            return answer

        optimiser.zero_grad()
        (loss(run) + strength * sparsity(changed, alpha)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return meta.eval()


@torch.no_grad()
def rewrite(meta: MetaNetwork, net: nn.Module) -> nn.Module:
    """A copy of a network with the weights that the metanetwork gives it.

    Raises:
        InputError: the network is no chain, or has larger kernels than the metanetwork is for.
    """
    chain = Chain(net)
    if chain.positions != meta.edge_in.in_features:
        raise InputError(
            f"this metanetwork is for kernels of {meta.edge_in.in_features} positions, got a "
            f"network with {chain.positions}"
        )
    changed = copy.deepcopy(net)
    changed.load_state_dict(chain.weights(net, meta(chain.graph(net))), strict=False)
    return changed
