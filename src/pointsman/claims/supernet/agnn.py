"""AGNN: the best network so far, with one class of choices changed, and weights shared with care.

Zhou et al., "Auto-GNN: Neural Architecture Search of Graph Neural Networks" (2019, arXiv
1909.03184).

A conservative explorer keeps the best network and changes one class of its choices in each step:
the class whose controller is least sure. A new network inherits weights only from layers of the
same shapes, attention and activation. The parts are `search.engines.conservative` and
`graphs.inherit`.

What is certain is the explorer's step and the rule of sharing; the entropy rule and the lists of
options are recalled, no code was read. What was settled:
- 144 networks of two graph layers over 300 nodes: 3 widths, 3 ways to gather, 4 kinds of attention,
  4 activations, both layers alike; each trained alone for 20 updates from the same seed, so that a
  table gives the quality of any of them. The explorer searches on accuracy on calibration nodes.
- Its settings are its defaults, set without trying any. 20 searches of 40 evaluations a seed.
- Shared weights are tested as a rule, not measured: a table needs none.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.space import Genotype, Space

WIDTHS = (4, 8, 16)
GATHERINGS = ("sum", "mean", "max")
ATTENTIONS = ("constant", "symmetric", "attentive", "cosine")
ACTIVATIONS = ("identity", "relu", "tanh", "elu")
UPDATES, SEARCHES, EVALUATIONS = 20, 20, 40


def _space() -> "Space":
    from pointsman.supernet.space import Choice, Space

    return Space(
        [
            Choice("width", WIDTHS),
            Choice("gathering", GATHERINGS),
            Choice("attention", ATTENTIONS),
            Choice("activation", ACTIVATIONS),
        ]
    )


def quick() -> None:
    """One class changes at a time, of the best so far; weights pass only between like layers."""
    import torch
    from torch.testing import assert_close

    from pointsman.supernet.graphs import Graph, GraphLayer, inherit
    from pointsman.supernet.search import Problem, search
    from pointsman.supernet.search.engines.conservative import conservative

    space = _space()
    goal = (2, 1, 3, 0)
    problem = Problem(space, lambda g: -float(sum(map(abs, _gaps(g, goal)))), lambda g: 1.0)
    history = search(problem, conservative, 12, seed=0)
    best = history[0]
    for each in history[1:]:
        must(sum(map(bool, _gaps(each.genotype, best.genotype))) == 1, "one class changes")
        best = max(best, each, key=lambda one: one.quality)

    graph = Graph((torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float())
    layers = {
        "same": GraphLayer(graph, 3, 4, gathering="max"),
        "shape": GraphLayer(graph, 3, 5),
        "attention": GraphLayer(graph, 3, 4, attention="cosine"),
        "activation": GraphLayer(graph, 3, 4, activation="tanh"),
    }
    ancestor = GraphLayer(graph, 3, 4)
    for name, layer in layers.items():
        before = layer.get_parameter("linear.weight").detach().clone()
        must(bool(inherit(layer, ancestor)) == (name == "same"), f"{name}: who inherits")
        expected = ancestor.get_parameter("linear.weight") if name == "same" else before
        assert_close(layer.get_parameter("linear.weight"), expected, rtol=0, atol=0)


def _gaps(one: "Genotype", other: "Genotype") -> list[int]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _table(seed: int) -> "dict[Genotype, tuple[float, float]]":
    """Accuracy on calibration and on test nodes of every network, trained alone."""
    from pointsman.claims import graph_world

    place, space = graph_world.world(seed), _space()
    found = {}
    for genotype in space.enumerate():
        taken = space.decode(genotype)
        width = int(taken.pop("width"))
        options = {name: str(option) for name, option in taken.items()}
        network = graph_world.classifier(place, seed, options, options, width=width)
        graph_world.fit(network, place, updates=UPDATES)
        calibration, test = (
            graph_world.accuracy(network, place, part) for part in (place.calibration, place.test)
        )
        found[genotype] = calibration, test
    return found


def full(seed: int) -> Figures:
    """Regret after 20 and 40 evaluations, and test accuracy of what is found."""
    from pointsman.supernet.search import Engine, Problem, search
    from pointsman.supernet.search.engines import random_search, reinforce
    from pointsman.supernet.search.engines.conservative import conservative

    table = _table(seed)
    problem = Problem(_space(), lambda g: table[g][0], lambda g: 1.0)
    top = max(calibration for calibration, _ in table.values())
    found = {
        "table: best calibration accuracy": top,
        "table: mean calibration accuracy": sum(c for c, _ in table.values()) / len(table),
    }
    engines: dict[str, Engine] = {
        "explorer": conservative,
        "random": random_search,
        "policy": reinforce,
    }
    for row, engine in engines.items():
        regrets: dict[int, list[float]] = {EVALUATIONS // 2: [], EVALUATIONS: []}
        tests = []
        for run in range(SEARCHES):
            history = search(problem, engine, EVALUATIONS, seed=100 * seed + run)
            for evaluations, regret in regrets.items():
                regret.append(top - max(each.quality for each in history[:evaluations]))
            tests.append(table[max(history, key=lambda each: each.quality).genotype][1])
        for evaluations, regret in regrets.items():
            found[f"{row}: regret after {evaluations}"] = sum(regret) / SEARCHES
        found[f"{row}: test accuracy"] = sum(tests) / SEARCHES
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    regret = f"regret after {EVALUATIONS}"
    return mean(measurements, f"explorer: {regret}") < mean(measurements, f"random: {regret}")


CLAIM = Claim(
    slug="agnn",
    paper="Auto-GNN: Neural Architecture Search of Graph Neural Networks",
    year=2019,
    arxiv="1909.03184",
    level="supernet",
    claim="A search that changes one class of choices of the best network at a time finds better "
    "networks over graphs than random search.",
    baseline="Random search without repeats, and a policy for every choice learned by REINFORCE, "
    "with equally many evaluations.",
    criterion=f"After {EVALUATIONS} of 144 evaluations the mean regret (best calibration accuracy "
    "of the table less the best found) over 20 searches on each of three graphs is below that of "
    "random search.",
    quick=quick,
    full=full,
    decide=decide,
    composition="conservative explorer · a controller for each class · entropy chooses the class · "
    "constrained sharing of weights",
    entry="pointsman.supernet.search.engines.conservative.conservative",
    key={
        "explorer": f"explorer: regret after {EVALUATIONS}",
        "random": f"random: regret after {EVALUATIONS}",
        "policy": f"policy: regret after {EVALUATIONS}",
    },
)
