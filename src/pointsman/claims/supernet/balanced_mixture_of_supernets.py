"""Balanced mixture of supernets: several sets of weights, and who trains which is learned.

Javan et al., "Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture" (2023, arXiv
2306.11982).

Where a network is downsampled changes what its filters see, so paths that share all weights disturb
each other. M sets of weights are trained; a table of moving averages says how well each path does
with each set; a path's set is drawn by a softmax over its row that grows sharper, balanced so that
every set gets the same share of the paths. The parts are `several_weights` and `BalancedPaths` in
`supernet.training`.

What was settled:
- Four convolutions of 8 channels on noisy digits, with two halvings (max pooling) at two different
  of the five places around them: 10 configurations. The classifier reads 2x2 positions in all.
- The truth is the test accuracy of each configuration trained alone, 150 updates of 64.
- Equal updates for each set of weights: 150 for one set, 600 for four. Training and validation data
  are two halves of the training part for supernets, as in the paper; validation for the table is a
  batch of 64. Sets are drawn apart at the start.
- A configuration is judged by the set with the best average for it, on the calibration part. No
  batch normalisation, so nothing is recalibrated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pointsman.supernet.supernet import Supernet

CHANNELS, LAYERS, SETS = 8, 4, 4
ALONE, UPDATES, BATCH, RATE, RUNS = 150, 150, 64, 1e-2, 1
COLUMNS = {"one set": (1, True), "four balanced": (SETS, True), "four unbalanced": (SETS, False)}


def _places() -> tuple[tuple[int, int], ...]:
    from itertools import combinations

    return tuple(combinations(range(LAYERS + 1), 2))


def _network(seed: int) -> "nn.Module":
    """Convolutions with two halvings, whose places are the one choice."""
    import torch
    from torch import nn
    from torch.nn import functional

    from pointsman.supernet.elastic.dial import Dial
    from pointsman.supernet.space import Choice

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dial = Dial(Choice("pooling", tuple(f"{a},{b}" for a, b in _places())))
            self.layers = nn.ModuleList(
                nn.Conv2d(CHANNELS if at else 1, CHANNELS, 3, padding=1) for at in range(LAYERS)
            )
            self.last = nn.Linear(4 * CHANNELS, 10)

        def forward(self, x: "Tensor") -> "Tensor":
            taken = _places()[self.dial.index]
            x = x.reshape(-1, 1, 8, 8)
            for at in range(LAYERS + 1):
                if at in taken:
                    x = functional.max_pool2d(x, 2)
                if at < LAYERS:
                    x = self.layers[at](x).relu()
            logits: Tensor = self.last(x.flatten(1))
            return logits

        def dials(self) -> tuple[Dial, ...]:
            return (self.dial,)

        def plain(self) -> nn.Module:
            taken = _places()[self.dial.index]
            found: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
            for at in range(LAYERS + 1):
                if at in taken:
                    found.append(nn.MaxPool2d(2))
                if at < LAYERS:
                    found += [self.layers[at], nn.ReLU()]
            return nn.Sequential(*found, nn.Flatten(), self.last)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Pooled()


def quick() -> None:
    """A peaked table is balanced in few rounds, and all sets are trained about as often."""
    import torch

    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import BalancedPaths, several_weights

    net = several_weights(Supernet(_network(0)), SETS, seed=1)
    must(net.space.count() == SETS * 10, "every configuration with every set")
    x = torch.randn(2, 64)
    net.use((1, 7))
    must(torch.equal(net.extract((1, 7))(x), net(x)), "a configuration alone is the same network")
    paths = BalancedPaths(net.space, lambda _: 0.0)
    generator = torch.Generator().manual_seed(0)
    paths.quality_PM = 0.9 + 0.1 * torch.rand(10, SETS, generator=generator)
    paths.quality_PM[:, 2] += 0.05  # a favourite of nearly all
    for done in (0.0, 0.5):
        plan = paths.probabilities(done)
        must(bool((plan.sum(dim=1) - 1).abs().max() < 1e-5), "probabilities of each path")
        must(bool((plan.mean(dim=0) - 0.25).abs().max() < 0.02), "equal shares of the sets")
    plain = BalancedPaths(net.space, lambda _: 0.0, balanced=False)
    plain.quality_PM = paths.quality_PM
    must(float(plain.probabilities(0.5).mean(dim=0)[2]) > 0.5, "without balance one takes most")


def full(seed: int) -> Figures:
    """Rank correlation with truth: one set, four balanced, four unbalanced."""
    from statistics import fmean

    from pointsman.claims import testbeds
    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.supernet.scores.agreement import rank_agreement
    from pointsman.supernet.supernet import Supernet

    data = noisy_digits(seed)
    truth = []
    for at in range(len(_places())):
        net = Supernet(_network(seed))
        net.use((at,))
        testbeds.fit(net, data.train, seed=seed, updates=ALONE, rate=RATE, batch=BATCH, noise=NOISE)
        truth.append(testbeds.accuracy(net(data.test.x), data.test.y))
    taus: dict[str, list[float]] = {}
    for run in range(RUNS):
        for name, (sets, balanced) in COLUMNS.items():
            inherited, busiest = _inherited(data, sets, balanced, seed * RUNS + run)
            agreement = rank_agreement(inherited, truth)
            taus.setdefault(f"{name}: Kendall", []).append(agreement.kendall)
            taus.setdefault(f"{name}: inherited accuracy", []).append(fmean(inherited))
            taus.setdefault(f"{name}: share of the busiest set", []).append(busiest)
            best = inherited.index(max(inherited))
            taus.setdefault(f"{name}: accuracy alone of its best", []).append(truth[best])
    figures = {name: fmean(values) for name, values in taus.items()}
    return {**figures, "alone: accuracy": fmean(truth), "alone: best accuracy": max(truth)}


def _inherited(data: Any, sets: int, balanced: bool, seed: int) -> tuple[list[float], float]:
    """Accuracy of every configuration on the calibration part; the largest share of a set."""
    from pointsman.claims.architectures import NOISE
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import (
        BalancedPaths,
        InheritedQuality,
        RandomBatches,
        several_weights,
        share_right,
        train_supernet,
    )

    half = len(data.train.x) // 2
    options: Any = {"size": BATCH, "noise": NOISE}
    train = RandomBatches(data.train.x[:half], data.train.y[:half], seed=seed, **options)
    judge = RandomBatches(data.train.x[half:], data.train.y[half:], seed=seed + 1, **options)

    def quality(supernet: "Supernet") -> float:
        import torch

        batch = judge.draw(0.0)
        with torch.no_grad():
            return share_right(supernet(batch.x), batch.y)

    net = several_weights(Supernet(_network(seed)), sets, seed=seed + 50)
    paths = BalancedPaths(net.space, quality, balanced=balanced, seed=seed)
    train_supernet(net, train, paths, updates=UPDATES * sets, rate=RATE)
    inherited = InheritedQuality(net, data.calibration.x, data.calibration.y)
    best = paths.best_sets()
    counts = paths.counts_PM.sum(dim=0)
    return (
        [inherited((best[(at,)], at)) for at in range(len(_places()))],
        float(counts.max() / counts.sum()),
    )


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    balanced = mean(measurements, "four balanced: Kendall")
    return balanced > mean(measurements, "one set: Kendall") and balanced >= mean(
        measurements, "four unbalanced: Kendall"
    )


CLAIM = Claim(
    slug="balanced-mixture-of-supernets",
    paper="Balanced Mixture of SuperNets for Learning the CNN Pooling Architecture",
    year=2023,
    arxiv="2306.11982",
    level="supernet",
    claim="Several sets of weights, to which paths are assigned by how well they do there and "
    "evenly, rank configurations of pooling better than one set.",
    baseline="One set of weights; and several without the balance; equal updates for each set.",
    criterion="Kendall's correlation of inherited with true accuracy over the 10 configurations, "
    "in the mean over the seeds, is higher with four balanced sets than with "
    "one, and at least that of four unbalanced sets.",
    quick=quick,
    full=full,
    decide=decide,
    composition="several sets of weights · softmax by moving average · balance of the sets",
    entry="pointsman.supernet.training.BalancedPaths",
    key={
        "four balanced": "four balanced: Kendall",
        "four unbalanced": "four unbalanced: Kendall",
        "one set": "one set: Kendall",
    },
)
