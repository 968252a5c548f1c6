"""NAC: the operations of a network over a graph, chosen without training any weights.

Xu et al., "Do Not Train It: A Linear Neural Architecture Search of Graph Neural Networks" (2023,
arXiv 2305.14065).

A supernet with random weights mixes its operations with coefficients of unit length. Only these are
learned, on the validation nodes, with a penalty on their absolute sum (a sparse code in a random
dictionary); the strongest operation is taken and its network trained. The part is
`supernet.graphs.sparse_code`.

What was settled:
- One place with four operations (a linear map, GCN, GCN over two steps, the maximum of neighbours)
  before a frozen linear classifier, on ten graphs of 300 nodes a seed; the official code's settings
  for Cora without updates. The best operation of a graph is the one whose network, trained alone,
  is best on test nodes.
- The control that decides: the same search on shuffled labels. What it picks there cannot be due to
  the labels.
- Beside it, a search that does train (DARTS of first order), and our own ridge read-out of each
  frozen operation, `graphs.readout_scores`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.claims.graph_world import World
    from pointsman.supernet.supernet import Supernet

GRAPHS, WIDTH = 10, 16
OPERATIONS = ("linear", "GCN", "GCN twice", "maximum")
UPDATES = 40  # of the search that trains


def _supernet(place: "World", seed: int) -> "Supernet":
    import torch
    from torch import nn

    from pointsman.claims.graph_world import COMMUNITIES, FEATURES
    from pointsman.supernet.elastic.one_of import OneOf
    from pointsman.supernet.graphs import Gather
    from pointsman.supernet.supernet import Supernet

    def hop() -> Gather:
        return Gather(place.graph, "sum", "symmetric", WIDTH)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        maps = [nn.Linear(FEATURES, WIDTH) for _ in OPERATIONS]
        classifier = nn.Linear(WIDTH, COMMUNITIES)
    largest = Gather(place.graph, "max", "constant", WIDTH)
    after: tuple[list[nn.Module], ...] = ([], [hop()], [hop(), hop()], [largest])
    operations = {
        name: nn.Sequential(linear, *rest)
        for name, linear, rest in zip(OPERATIONS, maps, after, strict=True)
    }
    return Supernet(nn.Sequential(OneOf("operation", operations), nn.ReLU(), classifier))


def _pick(place: "World", seed: int) -> int:
    """The operation that the sparse code finds strongest."""
    from pointsman.claims import graph_world
    from pointsman.supernet.graphs import sparse_code

    supernet = _supernet(place, seed)
    code = sparse_code(supernet, lambda net: graph_world.loss(net, place, place.calibration))
    return code.derive()[0]


def quick() -> None:
    """The supernet's weights stay bit for bit, and the mixture has unit length in every step."""
    import torch

    from pointsman.claims import graph_world
    from pointsman.supernet.graphs import sparse_code, unit_gate

    place = graph_world.world(0)
    supernet = _supernet(place, 0)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    lengths = []

    def loss(net: "Supernet") -> torch.Tensor:
        mixture = net.dials[0].mixture
        assert mixture is not None
        lengths.append(float(mixture.detach().norm()))
        return graph_world.loss(net, place, place.calibration)

    code = sparse_code(supernet, loss, steps=10)
    after = supernet.state_dict()
    must(all(torch.equal(before[name], after[name]) for name in before), "no weight has changed")
    must(all(p.grad is None for p in supernet.parameters()), "no weight has a gradient")
    must(len(lengths) == 10, "the search costs its steps alone")
    must(all(abs(length - 1) < 1e-5 for length in lengths), "the mixture has unit length")
    must(float(unit_gate(code.alpha[0]).detach().std()) > 0.01, "the coefficients part")


def full(seed: int) -> Figures:
    """How often each way picks the best operation, on labels and on shuffled ones."""
    import time

    from pointsman.claims import graph_world

    best, accuracies = [], []
    picks: dict[str, list[int]] = {row: [] for row in ("NAC", "NAC, shuffled labels", "read-out")}
    picks |= {"read-out, shuffled labels": [], "DARTS": []}
    seconds = {"NAC": 0.0, "DARTS": 0.0}
    for run in range(GRAPHS):
        own = 1000 * (seed + 1) + run
        place = graph_world.world(own)
        shuffled = place.shuffled(own)
        scores = _trained(place, own)
        accuracies.append(scores)
        best.append(max(range(len(scores)), key=lambda at: scores[at]))
        for row, find in (("NAC", _pick), ("DARTS", _darts)):
            start = time.process_time()
            picks[row].append(find(place, own))
            seconds[row] += time.process_time() - start
        picks["NAC, shuffled labels"].append(_pick(shuffled, own))
        picks["read-out"].append(_read_out(place, own))
        picks["read-out, shuffled labels"].append(_read_out(shuffled, own))
    found = {}
    for row, taken in picks.items():
        found[f"{row}: picks the best"] = sum(map(int.__eq__, taken, best)) / GRAPHS
        chosen = [scores[at] for scores, at in zip(accuracies, taken, strict=True)]
        found[f"{row}: accuracy"] = sum(chosen) / GRAPHS
        found[f"{row}: picks two steps of GCN"] = taken.count(2) / GRAPHS
    found["best operation: accuracy"] = sum(map(max, accuracies)) / GRAPHS
    found["mean operation: accuracy"] = sum(sum(scores) / 4 for scores in accuracies) / GRAPHS
    found["NAC: time, share of DARTS"] = seconds["NAC"] / seconds["DARTS"]
    return found


def _trained(place: "World", seed: int) -> list[float]:
    """Test accuracy of each operation's network."""
    from pointsman.claims import graph_world

    scores = []
    for at in range(len(OPERATIONS)):
        supernet = _supernet(place, seed)
        supernet.use([at])
        network = graph_world.fit(supernet, place)
        scores.append(graph_world.accuracy(network, place, place.test))
    return scores


def _darts(place: "World", seed: int) -> int:
    import torch

    from pointsman.claims import graph_world
    from pointsman.supernet.relax import Relaxation, alternate

    supernet = _supernet(place, seed)
    relaxation = Relaxation(supernet, seed=seed)
    alternate(
        supernet,
        relaxation,
        lambda net, part: graph_world.loss(net, place, part),
        [place.train],
        [place.calibration],
        updates=UPDATES,
        weights=torch.optim.AdamW(supernet.parameters(), graph_world.RATE),
        architecture=torch.optim.Adam(relaxation.parameters(), 2e-2, betas=(0.5, 0.999)),
    )
    return relaxation.derive()[0]


def _read_out(place: "World", seed: int) -> int:
    import torch

    from pointsman.supernet.graphs import readout_scores

    choice = _supernet(place, seed).body[0]  # type: ignore[index]
    with torch.no_grad():
        outputs = {
            name: operation(place.x).relu()
            for name, operation in zip(OPERATIONS, choice.operations, strict=True)
        }
    scores = readout_scores(outputs, place.y, place.train, place.calibration)
    return OPERATIONS.index(max(scores, key=lambda name: scores[name]))


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    gap = mean(measurements, "NAC: picks the best") - mean(
        measurements, "NAC, shuffled labels: picks the best"
    )
    return gap >= 0.3 and mean(measurements, "NAC: accuracy") > mean(
        measurements, "mean operation: accuracy"
    )


CLAIM = Claim(
    slug="nac",
    paper="Do Not Train It: A Linear Neural Architecture Search of Graph Neural Networks",
    year=2023,
    arxiv="2305.14065",
    level="supernet",
    claim="A sparse code over the operations of a supernet that is never trained finds the "
    "operations that suit the labels, at the cost of its few steps.",
    baseline="The same search on shuffled labels, and the mean over the operations.",
    criterion="Over 30 graphs the best operation is picked at least 30 points more often with the "
    "true labels than with shuffled ones, and the picked operations, trained, are more accurate "
    "than the mean operation.",
    quick=quick,
    full=full,
    decide=decide,
    composition="frozen random supernet · mixture of unit length · penalty on the absolute sum",
    entry="pointsman.supernet.graphs.sparse_code",
    key={
        "true labels": "NAC: picks the best",
        "shuffled": "NAC, shuffled labels: picks the best",
        "read-out": "read-out: picks the best",
    },
)
