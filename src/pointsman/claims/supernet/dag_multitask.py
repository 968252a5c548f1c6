"""Multi-task networks searched in a graph of states: what carries little flow is left out.

Choi and Im, "Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network
Topologies" (2023, arXiv 2303.06856).

Tasks share the operations on the edges of a graph; each has weights of its own for where its input
enters, where its output is read and how much of every edge it uses. Warm-up trains operations and
heads; the search trains the tasks' weights and heads, with a squeeze loss on the edges in use; then
edges of low flow are deleted, and what is left is fine-tuned. The part is
`supernet.relax.flow.StateGraph`; its docstring says what is certain and what is reconstructed (the
squeeze loss, the flow's formula, the normalisation of edge weights).

What was settled:
- Six states of 16 numbers with edges over at most three: twelve edges, each a norm, a linear layer
  and a ReLU. Tasks on noisy digits: the class modulo 5, and whether the class is above 4.
- kappa is 0.5, the weight of the squeeze loss 0.05; both are not found in the sources.
- Every state keeps its read-in and read-out weights: one way in and out for each task
  (`StateGraph.settle`) cost 37 points before fine-tuning on the tuning seed, and hid what deleting
  edges costs.
- Random deletions keep a path for every task too; all ways of deleting start from the same searched
  network and are fine-tuned by the same updates. The order of raw edge weights, the largest of any
  task's, stands beside.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pointsman.claims.testbeds import Part
    from pointsman.supernet.relax.flow import StateGraph

STATES, REACH, WIDTH = 6, 3, 16
CLASSES = (5, 2)
WARM_UP, SEARCH, FINE_TUNING, BATCH = 250, 150, 150, 96
RATE, ARCHITECTURE_RATE = 5e-3, 5e-2
KAPPA, SQUEEZE = 0.5, 0.05
DELETED, DRAWS = 6, 4  # of twelve edges; random ways to delete them


def _graph(states: int = STATES, reach: int = REACH) -> "StateGraph":
    from torch import nn

    from pointsman.supernet.relax.flow import StateGraph

    def operation() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU())

    return StateGraph(states, reach, len(CLASSES), operation)


def _network(seed: int) -> "nn.ModuleDict":
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = [nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, c)) for c in CLASSES]
        return nn.ModuleDict(
            {"stem": nn.Linear(64, WIDTH), "graph": _graph(), "heads": nn.ModuleList(heads)}
        )


def _answers(net: "nn.ModuleDict", x: "torch.Tensor") -> "list[torch.Tensor]":
    inside = net["stem"](x)
    heads: list[nn.Module] = list(net["heads"].children())
    return [head(net["graph"](inside, task)) for task, head in enumerate(heads)]


def _labels(y: "torch.Tensor") -> "list[torch.Tensor]":
    return [y % 5, (y > 4).long()]


def quick() -> None:
    """An edge's flow is the sum over all paths through it; deleting by it disconnects no task."""
    from itertools import combinations, pairwise
    from math import prod

    import torch

    from pointsman.supernet.relax.flow import edge_flow, edges_within

    must(edges_within(4, 1) == [(0, 1), (1, 2), (2, 3)], "a flow constant of 1 leaves a chain")
    torch.manual_seed(0)
    edges = edges_within(STATES, REACH)
    read_in, read_out = torch.rand(2, STATES, dtype=torch.float64)
    weights = torch.rand(len(edges), dtype=torch.float64)
    weight = dict(zip(edges, weights.tolist(), strict=True))
    expected = dict.fromkeys(edges, 0.0)
    for length in range(2, STATES + 1):
        for path in combinations(range(STATES), length):
            steps = list(pairwise(path))
            if all(step in weight for step in steps):
                ends = float(read_in[path[0]] * read_out[path[-1]])
                for step in steps:
                    expected[step] += ends * prod(weight[each] for each in steps)
    found, _ = edge_flow(read_in, read_out, edges, weights)
    torch.testing.assert_close(found, torch.tensor(list(expected.values())).double())

    graph = _graph()
    for parameter in graph.architecture.values():
        torch.nn.init.normal_(parameter)
    graph.settle()
    graph.reduce(len(edges))
    x = torch.rand(2, WIDTH)
    must(all(bool(graph(x, task).any()) for task in range(2)), "every task keeps a path")
    must(len(graph.operations) < len(edges), "edges that no task needs are deleted")


def full(seed: int) -> Figures:
    """Accuracy over both tasks without half of the edges: by flow, by weight and at random."""
    import copy

    import numpy as np

    from pointsman.claims.architectures import noisy_digits

    data = noisy_digits(seed)
    net = _network(seed)
    graph: StateGraph = net["graph"]  # type: ignore[assignment]
    heads = list(net["heads"].parameters())
    shared = [*net["stem"].parameters(), *graph.shared_parameters(), *heads]
    _train(net, data.train, [(shared, RATE)], WARM_UP, seed)
    ours = [(list(graph.architecture.values()), ARCHITECTURE_RATE), (heads, RATE)]
    _train(net, data.train, ours, SEARCH, seed + 1000, squeeze=SQUEEZE)
    found = {"all edges: accuracy": _accuracy(net, data.test)}

    def without(rank: Callable[["StateGraph"], Sequence[float]] | None) -> tuple[float, float]:
        alone = copy.deepcopy(net)
        left: StateGraph = alone["graph"]  # type: ignore[assignment]
        left.reduce(DELETED, None if rank is None else lambda: rank(left))
        before = _accuracy(alone, data.test)
        weights = [*alone["stem"].parameters(), *left.shared_parameters()]
        weights += alone["heads"].parameters()
        _train(alone, data.train, [(weights, RATE / 2)], FINE_TUNING, seed + 2000)
        return before, _accuracy(alone, data.test)

    def by_weight(left: "StateGraph") -> list[float]:
        largest: list[float] = left.architecture["edges"].detach().amax(dim=0).tolist()
        return largest

    rng = np.random.default_rng(seed)
    orders = [rng.random(len(graph.edges)).tolist() for _ in range(DRAWS)]
    rows = {
        "flow": [without(None)],
        "raw weight": [without(by_weight)],
        "random": [without(lambda _, order=order: order) for order in orders],  # type: ignore[misc]
    }
    for name, pairs in rows.items():
        before, after = np.mean(pairs, axis=0)
        found[f"{name}, half of the edges: accuracy"] = float(before)
        found[f"{name}, fine-tuned: accuracy"] = float(after)
    return found


def _train(
    net: "nn.ModuleDict",
    part: "Part",
    groups: "Sequence[tuple[list[torch.nn.Parameter], float]]",
    updates: int,
    seed: int,
    squeeze: float = 0.0,
) -> None:
    """These parameters, with a falling rate, on the sum of both tasks' losses."""
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.architectures import NOISE

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([{"params": some, "lr": rate} for some, rate in groups])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        rows = torch.randint(len(part.x), (BATCH,), generator=generator)
        x = part.x[rows]
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        pairs = zip(_answers(net, x), _labels(part.y[rows]), strict=True)
        loss = torch.stack([cross_entropy(answer, y) for answer, y in pairs]).sum()
        if squeeze:
            loss = loss + squeeze * net["graph"].squeeze(KAPPA)  # type: ignore[operator]
        net.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def _accuracy(net: "nn.ModuleDict", part: "Part") -> float:
    """Mean over both tasks."""
    import torch

    from pointsman.claims.testbeds import accuracy

    with torch.no_grad():
        pairs = zip(_answers(net, part.x), _labels(part.y), strict=True)
        return sum(accuracy(answer, y) for answer, y in pairs) / len(CLASSES)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return all(
        mean(measurements, f"flow, {row}: accuracy")
        > mean(measurements, f"random, {row}: accuracy")
        for row in ("half of the edges", "fine-tuned")
    )


CLAIM = Claim(
    slug="dag-multitask",
    paper="Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network "
    "Topologies",
    year=2023,
    arxiv="2303.06856",
    level="supernet",
    claim="A graph of states that tasks share can be reduced by the flow through its edges to a "
    "compact network for all of them.",
    baseline="The same number of edges deleted at random from the same searched network, a path "
    "for every task kept; four draws a seed.",
    criterion="Without half of the edges the mean accuracy over both tasks and the seeds is higher "
    "where they are deleted by flow than at random, both before and after fine-tuning.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "all edges": "all edges: accuracy",
        "by flow, fine-tuned": "flow, fine-tuned: accuracy",
        "at random, fine-tuned": "random, fine-tuned: accuracy",
    },
    composition="graph of states · read-in, read-out and edge weights of each task · squeeze loss "
    "· reduction by flow",
    entry="pointsman.supernet.relax.flow.StateGraph",
)
