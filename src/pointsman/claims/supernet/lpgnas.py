"""LPGNAS: bits of weights and activations learned with the architecture of a network over a graph.

Zhao et al., "Learned Low Precision Graph Neural Networks" (2020, arXiv 2009.09232).

The format of each component's weights and of its inputs is a choice like its operation; all are
relaxed and learned in one round, weights on the training nodes, choices on the validation nodes,
with the expected size added to the loss. The parts are `graphs.searchable_formats`,
`relax.alternate` and `relax.ExpectedCost`.

Known of the paper are its abstract and its idea; formats, penalty, temperature and warm-up are
reconstructed. What was settled:
- Two graph layers of 16 features and a classifier, over 300 nodes. Each layer gathers neighbours in
  one of three ways (GCN, mean, attention); each of three linear maps has weights and inputs of 1,
  2, 4, 8 or 32 bits, simulated.
- Choices are drawn one at a time (Gumbel) after a warm-up of a third of 120 updates. The penalty is
  the expected bits of weights and of inputs, each as a share of that at 32 bits, summed and halved;
  its weight is 0.5. Set without trying any.
- The derived network is trained from scratch like its rivals: GCN at 32 bits; and with the smallest
  uniform format whose model is not smaller, GCN and the derived operations (the better counts).
- The size of a model counts its weights at their bits and all other parameters at 32.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.claims.graph_world import World
    from pointsman.supernet.space import Genotype
    from pointsman.supernet.supernet import Supernet

WIDTH, RUNS = 16, 3
UPDATES, WARM_UP, WEIGHT = 120, 40, 0.5
ARCHITECTURE_RATE = 0.1
FORMATS = (1, 2, 4, 8, 32)


def _supernet(place: "World", seed: int) -> "tuple[Supernet, dict[str, int]]":
    """The network with all its choices, and the size of each weight."""
    import torch
    from torch import nn

    from pointsman.claims.graph_world import COMMUNITIES, FEATURES
    from pointsman.supernet.elastic.one_of import OneOf
    from pointsman.supernet.graphs import Gather, searchable_formats
    from pointsman.supernet.supernet import Supernet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for at, size in enumerate((FEATURES, WIDTH)):
            ways = {
                "GCN": Gather(place.graph, "sum", "symmetric", WIDTH),
                "mean": Gather(place.graph, "mean", "constant", WIDTH),
                "attention": Gather(place.graph, "sum", "attentive", WIDTH),
            }
            layers += [nn.Linear(size, WIDTH), OneOf(f"{3 * at} gathering", ways), nn.ReLU()]
        body = nn.Sequential(*layers, nn.Linear(WIDTH, COMMUNITIES))
    sizes = searchable_formats(body, FORMATS)
    return Supernet(body), sizes


def _uniform(supernet: "Supernet", bits: int, like: "Genotype | None" = None) -> "Genotype":
    """Everything at so many bits; operations as in another genotype, or GCN."""
    taken = {} if like is None else supernet.space.decode(like)
    for name in supernet.space.names:
        gathering = name.endswith("gathering")
        taken[name] = taken.get(name, "GCN") if gathering else str(bits)
    return supernet.space.encode(taken)


def _bits(supernet: "Supernet", genotype: "Genotype", sizes: dict[str, int]) -> int:
    """Of a whole model: weights at their bits, other parameters at 32."""
    from pointsman.supernet.graphs import model_bits

    alone = supernet.extract(genotype)
    others = sum(p.numel() for p in alone.parameters()) - sum(sizes.values())
    return model_bits(supernet.space, genotype, sizes) + 32 * others


def quick() -> None:
    """32 bits give the float output, bits are counted exactly, and the size learns to fall."""
    import copy

    import torch
    from torch.testing import assert_close

    from pointsman.claims import graph_world
    from pointsman.supernet.graphs import format_costs, model_bits, searchable_formats
    from pointsman.supernet.relax import ExpectedCost, Relaxation
    from pointsman.supernet.supernet import Supernet

    place = graph_world.world(0)
    plain = graph_world.classifier(place, 0, {}, {})
    formatted = copy.deepcopy(plain)
    sizes = searchable_formats(formatted, FORMATS)
    supernet = Supernet(formatted)
    whole = tuple(len(FORMATS) - 1 for _ in supernet.space.choices)
    supernet.use(whole)
    assert_close(supernet(place.x), plain(place.x), rtol=0, atol=0)
    numbers = sum(m.weight.numel() for m in plain.modules() if isinstance(m, torch.nn.Linear))
    must(model_bits(supernet.space, whole, sizes) == 32 * numbers, "bits times numbers")
    one = tuple(0 for _ in whole)
    must(model_bits(supernet.space, one, sizes) == numbers, "one bit a number")
    relaxation = Relaxation(supernet)
    expected = ExpectedCost(relaxation, format_costs(supernet.space, sizes), "bits")
    must(expected.of(whole) == 32 * numbers, "the expected size of a one-hot choice is exact")
    optimiser = torch.optim.Adam(relaxation.parameters(), 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        expected().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    must(expected.of(relaxation.derive()) == numbers, "alone, the penalty leads to one bit")


def _search(place: "World", seed: int) -> "Genotype":
    import torch

    from pointsman.claims import graph_world
    from pointsman.supernet.graphs import format_costs
    from pointsman.supernet.relax import ExpectedCost, GumbelGate, Relaxation, alternate

    supernet, sizes = _supernet(place, seed)
    entering = {name.replace("weight bits", "input bits"): 1 for name in sizes}
    relaxation = Relaxation(supernet, gate=GumbelGate(2.0, 0.2), seed=seed)
    terms = [
        (ExpectedCost(relaxation, format_costs(supernet.space, counted), "bits"), 32 * total)
        for counted, total in ((sizes, sum(sizes.values())), (entering, len(entering)))
    ]
    alternate(
        supernet,
        relaxation,
        lambda net, part: graph_world.loss(net, place, part),
        [place.train],
        [place.calibration],
        updates=UPDATES,
        weights=torch.optim.AdamW(
            supernet.parameters(), graph_world.RATE, weight_decay=graph_world.DECAY
        ),
        architecture=torch.optim.Adam(relaxation.parameters(), ARCHITECTURE_RATE),
        penalty=lambda _: WEIGHT / 2 * torch.stack([cost() / total for cost, total in terms]).sum(),
        warm_up=WARM_UP,
        seed=seed,
    )
    return relaxation.derive()


def full(seed: int) -> Figures:
    """Test accuracy and size of the learned formats, of 32 bits, and of uniform ones."""
    from pointsman.claims import graph_world

    place = graph_world.world(seed)
    sums: dict[str, float] = {}
    for run in range(RUNS):
        own = 1000 * (seed + 1) + run

        def accuracy(genotype: "Genotype", own: int = own) -> float:
            network, _ = _supernet(place, own)
            network.use(genotype)
            return graph_world.accuracy(graph_world.fit(network, place), place, place.test)

        supernet, sizes = _supernet(place, own)
        learned = _search(place, own)
        bits = _bits(supernet, learned, sizes)
        whole = _uniform(supernet, 32)
        alike = next(b for b in FORMATS if _bits(supernet, _uniform(supernet, b), sizes) >= bits)
        of_inputs = [int(v) for n, v in supernet.space.decode(learned).items() if "input" in n]
        rivals = [accuracy(_uniform(supernet, alike, like)) for like in (None, learned)]
        found = {
            "learned: accuracy": accuracy(learned),
            "learned: times smaller": _bits(supernet, whole, sizes) / bits,
            "learned: mean bits of inputs": sum(of_inputs) / len(of_inputs),
            "32 bits: accuracy": accuracy(whole),
            "uniform, GCN: accuracy": rivals[0],
            "uniform, learned operations: accuracy": rivals[1],
            "uniform: bits": float(alike),
        }
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value / RUNS
    return sums


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    learned = mean(measurements, "learned: accuracy")
    ways = ("GCN", "learned operations")
    return (
        mean(measurements, "learned: times smaller") >= 4
        and learned >= mean(measurements, "32 bits: accuracy") - 0.02
        and learned >= max(mean(measurements, f"uniform, {way}: accuracy") for way in ways)
    )


CLAIM = Claim(
    slug="lpgnas",
    paper="Learned Low Precision Graph Neural Networks",
    year=2020,
    arxiv="2009.09232",
    level="supernet",
    claim="Bits of weights and activations learned together with the operations make networks over "
    "graphs several times smaller at about the accuracy of floating point.",
    baseline="GCN at 32 bits, and the smallest uniform format whose model is not smaller, with "
    "GCN's operations or the learned ones, trained alike.",
    criterion="Over nine searches the derived models are at least 4 times smaller than GCN at 32 "
    "bits, at most 2 points less accurate, and at least as accurate as uniform formats.",
    quick=quick,
    full=full,
    decide=decide,
    composition="formats as operations on weights and inputs · Gumbel gates · expected bits · "
    "alternating loop with a warm-up",
    entry="pointsman.supernet.graphs.searchable_formats",
    key={
        "learned": "learned: accuracy",
        "32 bits": "32 bits: accuracy",
        "uniform": "uniform, GCN: accuracy",
        "times smaller": "learned: times smaller",
    },
)
