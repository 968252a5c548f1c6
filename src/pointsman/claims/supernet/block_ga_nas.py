"""AE-CNN: evolution of networks as lists of blocks whose length is open.

Sun et al., "Automatically Evolving CNN Architectures Based on Blocks" (2018, arXiv 1810.11875).

A network is a list of residual, dense and pooling units. Binary tournaments choose parents, parents
exchange tails at unit boundaries of their own, children gain, lose or alter a unit, and tournaments
choose who survives, the best always. The parts are `UnitLists` and `evolve_lists`.

The sheet is rated medium: the operators and their rates are from a re-implementation of the same
group, the paper's training schedule is recalled.

What was settled:
- Noisy digits of 8x8 pixels, a convolution with stride 2 in front, at most 5 units: residual units
  of 1 or 2 blocks and 4, 8 or 16 channels, dense units of 1 or 2 layers that add 4 or 8 channels,
  and at most two poolings (max or mean), none of them first.
- Fitness is the accuracy on the calibration part after 2 epochs; 8 individuals, and 6 generations
  after the first: 56 networks. A random search has as many, drawn as the first generation is.
- Survivors by tournament (the public code uses roulette); no network is evaluated twice.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.supernet.search.engines.genetic import UnitLists

POPULATION, GENERATIONS, UPDATES, LONGEST = 8, 6, 16, 5


def lists() -> "UnitLists":
    """The space of this claim."""
    from pointsman.supernet.search.engines.genetic import Kind, UnitLists

    return UnitLists(
        [
            Kind("residual", (("blocks", (1, 2)), ("channels", (4, 8, 16)))),
            Kind("dense", (("layers", (1, 2)), ("growth", (4, 8)))),
            Kind("pool", (("how", ("max", "mean")),), first=False, most=2),
        ],
        LONGEST,
    )


def quick() -> None:
    """A thousand children are valid networks, none is evaluated twice, and they get better."""
    import numpy as np
    import torch

    from pointsman.supernet.search.engines.genetic import evolve_lists
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.search.run import search

    space, rng = lists(), np.random.default_rng(0)
    people = [space.sample(rng) for _ in range(20)]
    for _ in range(500):
        one, other = (people[int(at)] for at in rng.integers(20, size=2))
        for child in space.cross(one, other, rng):
            mutant = space.mutate(child, rng)
            must(space.valid(mutant), f"{mutant} is a valid list")
            people[int(rng.integers(20))] = mutant
    for units in people:
        out = network(space.named(space.genotype(units)), 0)(torch.zeros(2, 64))
        must(out.shape == (2, 10), "every list decodes to a network that runs")

    problem = Problem(space.space, lambda g: float(sum(g)), lambda g: 1.0)
    count = POPULATION * (1 + GENERATIONS)
    found = search(problem, evolve_lists(space, population=POPULATION), count)
    must(len({each.genotype for each in found}) == count, "no network is evaluated twice")
    later = [each.quality for each in found[count // 2 :]]
    first = [each.quality for each in found[:POPULATION]]
    must(sum(later) / len(later) > sum(first) / len(first), "later generations are better")


def full(seed: int) -> Figures:
    """Best accuracy found by evolution and by as many networks at random."""
    from statistics import fmean

    import numpy as np

    from pointsman.supernet.search.engines.genetic import evolve_lists
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.search.run import evaluate, search

    space = lists()
    accuracies = _accuracies(space, seed)
    problem = Problem(space.space, partial(_fitness, accuracies), lambda g: 1.0)
    count = POPULATION * (1 + GENERATIONS)
    evolved = search(problem, evolve_lists(space, population=POPULATION), count, seed=seed)
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn[space.genotype(space.sample(rng))] = None
    random = [evaluate(problem, genotype) for genotype in drawn]
    found = {}
    for name, evaluations in (("evolution", evolved), ("random", random)):
        best = max(evaluations, key=lambda each: each.quality)
        later = fmean(each.quality for each in evaluations[count // 2 :])
        found[f"{name}: best fitness"] = best.quality
        found[f"{name}: its test accuracy"] = accuracies(best.genotype)[1]
        found[f"{name}: mean fitness, second half"] = later
        found[f"{name}: networks"] = float(len({each.genotype for each in evaluations}))
    return found


def _fitness(accuracies: Any, genotype: Any) -> float:
    """Accuracy on the calibration part."""
    return float(accuracies(genotype)[0])


def _accuracies(space: "UnitLists", seed: int) -> Any:
    """Gives accuracy on the calibration and on the test part of a genotype, trained once."""
    from functools import cache

    from pointsman.claims.architectures import NOISE, judged, noisy_digits
    from pointsman.claims.testbeds import fit

    data = noisy_digits(seed)

    @cache
    def accuracies(genotype: tuple[int, ...]) -> tuple[float, float]:
        net = network(space.named(genotype), seed)
        fit(net, data.train, seed=seed, updates=UPDATES, rate=1e-2, noise=NOISE)
        return judged(net, data)

    return accuracies


def network(units: Sequence[tuple[str, dict[str, Any]]], seed: int) -> "nn.Sequential":
    """From rows of 64 pixels to the logits of ten classes."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8)), *_convolution(1, 8, stride=2)]
        channels = 8
        for kind, options in units:
            if kind == "residual":
                for _ in range(options["blocks"]):
                    layers.append(_sum(channels, options["channels"]))
                    channels = options["channels"]
            elif kind == "dense":
                for _ in range(options["layers"]):
                    layers.append(_beside(channels, options["growth"]))
                    channels += options["growth"]
            else:
                pool = nn.MaxPool2d if options["how"] == "max" else nn.AvgPool2d
                layers.append(pool(2))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
        return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> "list[nn.Module]":
    from torch import nn

    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def _sum(inputs: int, outputs: int) -> "nn.Module":
    """A residual block."""
    from torch import Tensor, nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                *_convolution(inputs, outputs),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            same = inputs == outputs
            self.past = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (self.body(x) + self.past(x)).relu()
            return out

    return Residual()


def _beside(inputs: int, growth: int) -> "nn.Module":
    """A layer of a dense block: its channels go beside its inputs."""
    import torch
    from torch import Tensor, nn

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*_convolution(inputs, growth))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.body(x)], dim=1)

    return Dense()


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    evolved = mean(measurements, "evolution: best fitness")
    return evolved > mean(measurements, "random: best fitness")


CLAIM = Claim(
    slug="block-ga-nas",
    paper="Automatically Evolving CNN Architectures Based on Blocks",
    year=2018,
    arxiv="1810.11875",
    level="supernet",
    claim="Evolution of lists of blocks, of open length, finds better networks than chance does "
    "with as many trainings.",
    baseline="As many different networks at random, drawn as the first generation is, trained and "
    "judged alike.",
    criterion="The best accuracy on the calibration part among 56 networks, in the mean over the "
    "seeds, is higher with evolution than at random.",
    quick=quick,
    full=full,
    decide=decide,
    composition="lists of units as a space · binary tournaments · tails exchanged at unit "
    "boundaries · a unit added, removed or altered · the best survives",
    entry="pointsman.supernet.search.engines.genetic.evolve_lists",
    key={
        "evolution": "evolution: best fitness",
        "random": "random: best fitness",
        "evolution, test": "evolution: its test accuracy",
        "random, test": "random: its test accuracy",
    },
)
