"""Population based training: hyperparameters that change while networks train.

Jaderberg et al., "Population Based Training of Neural Networks" (2017, arXiv 1711.09846).

A population trains side by side. After each round its worst fifth takes over weights and
hyperparameters of its best fifth, and perturbs the hyperparameters. The part is
`search.population_based_training`. No fact sheet gives figures for a small check; the mechanism is
the paper's, the check is our own.

What was settled:
- Networks 64-32-10 on noisy digits, by gradient descent with momentum under a rate, a weight decay
  and a strength of noise on the inputs; 10 members, 20 rounds of 12 updates.
- The random search starts from the same draws, trains as long, and never copies: exploitation that
  leaves everyone alone. Both judge by the calibration part, and pick the best member by it.
- Three populations a seed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.claims.testbeds import Digits
    from pointsman.supernet.search.population import Knobs, Member

    State = tuple[torch.nn.Module, torch.optim.Optimizer]

RANGES = {"rate": (1e-3, 1.0), "decay": (1e-6, 1e-1), "noise": (1e-2, 1.0)}
SIZE, ROUNDS, UPDATES, REPEATS = 10, 20, 12, 3


def quick() -> None:
    """On the paper's two-dimensional toy, a population climbs further than its members alone."""
    from pointsman.supernet.search.population import perturb, population_based_training, truncation

    def climb(theta: list[float], knobs: "Knobs", turn: int) -> list[float]:
        for _ in range(4):
            theta = [v * (1 - 0.1 * knobs[f"h{at}"]) for at, v in enumerate(theta)]
        return theta

    def best(seed: int, share: float | None) -> float:
        found = population_based_training(
            lambda number: [0.9, 0.9],
            climb,
            lambda theta: 1.2 - sum(v**2 for v in theta),
            {"h0": (1e-3, 1.0), "h1": (1e-3, 1.0)},
            rounds=12,
            size=4,
            exploit=(lambda q, rng: list(range(len(q)))) if share is None else truncation(share),
            explore=perturb((0.8, 1.25)),
            seed=seed,
        )
        return found[0].quality

    gains = [best(seed, 0.5) - best(seed, None) for seed in range(5)]
    must(sum(gains) / len(gains) > 0.02, f"copying and perturbing gains, got {gains}")


def full(seed: int) -> Figures:
    """Accuracy of the picked member on the test part, and of the whole population."""
    from statistics import fmean

    from pointsman.claims.architectures import noisy_digits
    from pointsman.supernet.search.population import truncation

    data = noisy_digits(seed)
    found: dict[str, list[float]] = {}
    for repeat in range(REPEATS):
        for name, exploit in (
            ("population based training", truncation(0.2)),
            ("random search", lambda qualities, rng: list(range(len(qualities)))),
        ):
            members = _trained(data, REPEATS * seed + repeat, exploit)
            accuracies = [_accuracy(member.state, data.test) for member in members]
            for column, value in (
                ("picked, test", accuracies[0]),
                ("picked, calibration", members[0].quality),
                ("mean of all, test", fmean(accuracies)),
            ):
                found.setdefault(f"{name}: {column}", []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def _trained(data: "Digits", seed: int, exploit: object) -> "list[Member[State]]":
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.search.population import population_based_training

    def start(number: int) -> "State":
        net = mlp(64, 32, 10, seed=1000 * seed + number)
        return net, torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)

    def train(state: "State", knobs: "Knobs", turn: int) -> "State":
        net, optimiser = state
        generator = torch.Generator().manual_seed(1000 * seed + turn)
        optimiser.param_groups[0].update(lr=knobs["rate"], weight_decay=knobs["decay"])
        for _ in range(UPDATES):
            rows = torch.randint(len(data.train.x), (128,), generator=generator)
            x = data.train.x[rows]
            x = x + knobs["noise"] * torch.randn(x.shape, generator=generator)
            optimiser.zero_grad()
            cross_entropy(net(x), data.train.y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return state

    return population_based_training(
        start,
        train,
        lambda state: _accuracy(state, data.calibration),
        RANGES,
        rounds=ROUNDS,
        size=SIZE,
        exploit=exploit,  # type: ignore[arg-type]
        seed=seed,
    )


def _accuracy(state: "State", part: "object") -> float:
    import torch

    from pointsman.claims.testbeds import accuracy

    with torch.no_grad():
        return accuracy(state[0](part.x), part.y)  # type: ignore[attr-defined]


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, "population based training: picked, test")
    return ours >= mean(measurements, "random search: picked, test") + 0.005


CLAIM = Claim(
    slug="population-based-training",
    paper="Population Based Training of Neural Networks",
    year=2017,
    arxiv="1711.09846",
    level="supernet",
    claim="Hyperparameters that are copied from the best and perturbed during training give better "
    "networks than a random search of the same cost, whose hyperparameters stay fixed.",
    baseline="Random search: the same first draws, networks, updates and data, without copying.",
    criterion="Accuracy on the test part of the member picked on the calibration part, in the mean "
    "over the seeds and three populations each, is at least 0.5 points above the random search's.",
    quick=quick,
    full=full,
    decide=decide,
    composition="population · truncation selection copies weights and hyperparameters · "
    "perturbation by 0.8 or 1.2",
    entry="pointsman.supernet.search.population.population_based_training",
    key={
        "population": "population based training: picked, test",
        "random search": "random search: picked, test",
    },
)
