"""ShiftNAS: paths are drawn by level of cost, and the levels' rates shift to where it is needed.

Zhang et al., "ShiftNAS: Improving One-shot NAS via Probability Shift" (2023, arXiv 2307.08300).

Options drawn uniformly give subnets of middling cost nearly always, so the smallest and the largest
are hardly trained. The range of costs is cut into levels; an update draws a level and then a path
of it. The levels' probabilities follow how much each still improves. The part is `LevelPaths` in
`supernet.training`.

What is certain and what is reconstructed: of the paper only its abstract and summaries were at
hand, and its code is not public. Levels, drawing a level first, and the shift are certain. The
measure of a level's improvement (a slow minus a fast moving average of its loss, relative) is
reconstructed. The paper's learned generator of paths of a given cost is left out: here the 1,296
networks are sorted into their levels, and one of a level is drawn uniformly.

What was settled:
- Networks 64-W1-W2-W3-W4-10 on noisy digits with all widths in 8, 16, 24, 32, 48, 64; cost is the
  number of weights, counted; five levels of equal width in cost. 400 updates, two runs for each
  seed, the same batches for all columns.
- The loss is cross-entropy on the test part, averaged over 12 networks of each level, the same for
  all columns. "Extreme" is the mean of the lowest and the highest level.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.space import Genotype
    from pointsman.supernet.supernet import Supernet

LEVELS, UPDATES, RUNS, JUDGED, RATE = 5, 400, 2, 12, 2e-3
ROWS = ("lowest", "low", "middle", "high", "highest")


def _supernet(seed: int) -> "Supernet":
    import torch

    from pointsman.claims.architectures import WIDTHS
    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.elastic import Width
    from pointsman.supernet.making import make_elastic

    widths = [Width(str(2 * layer), counts=WIDTHS) for layer in range(4)]
    net = mlp(64, 64, 64, 64, 64, 10, seed=seed)
    return make_elastic(net, torch.zeros(2, 64), widths)


def _cost(genotype: "Genotype") -> float:
    """Weights of a network, counted."""
    from itertools import pairwise

    from pointsman.claims.architectures import WIDTHS

    sizes = [64, *(WIDTHS[index] for index in genotype), 10]
    return float(sum(a * b + b for a, b in pairwise(sizes)))


def quick() -> None:
    """Uniform options miss the extremes, levels do not, and probability goes where loss falls."""
    import numpy as np

    from pointsman.supernet.space import Choice, Space
    from pointsman.supernet.training import LevelPaths, UniformPaths

    space = Space([Choice(f"layer {at}", (1, 2, 3, 4)) for at in range(6)])

    def cost(genotype: "Genotype") -> float:
        return float(sum(genotype))

    paths = LevelPaths(space, cost, levels=LEVELS, period=10, seed=0)
    uniform = UniformPaths(space, seed=0)
    drawn = [paths.level_of(cost(uniform.draw(0.0)[0].genotype)) for _ in range(500)]
    shares = np.bincount(drawn, minlength=LEVELS) / 500
    must(bool(shares[[0, 4]].max() < 0.06 < 0.4 < shares[2]), f"uniform is middling, got {shares}")
    fixed = LevelPaths(space, cost, levels=LEVELS, shift=False, seed=0)
    levels = [fixed.level_of(cost(fixed.draw(0.0)[0].genotype)) for _ in range(500)]
    even = np.bincount(levels, minlength=LEVELS) / 500
    must(bool(abs(even - 0.2).max() < 0.06), f"levels are even, got {even}")
    loss = 2.0
    for _ in range(150):
        path = paths.draw(0.0)
        top = paths.level_of(cost(path[0].genotype)) == 4
        loss *= 0.97 if top else 1
        paths.learn(None, path, [loss if top else 1.0])  # type: ignore[arg-type]
    must(paths.probabilities.argmax() == 4, "the level whose loss still falls is drawn most")
    must(bool(paths.probabilities.min() > 0.05), "and no level is forgotten")


def full(seed: int) -> Figures:
    """Test loss by level of cost: uniform options, fixed levels, shifted levels."""
    from statistics import fmean

    from torch.nn import functional

    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.supernet.training import (
        InheritedQuality,
        LevelPaths,
        RandomBatches,
        UniformPaths,
        train_supernet,
    )

    data = noisy_digits(seed)
    found: dict[str, list[float]] = {}
    x, y = data.test.x, data.test.y
    for run in range(RUNS):
        own = seed * RUNS + run
        for name in ("uniform", "fixed levels", "shifted levels"):
            net = _supernet(own)
            fixed = LevelPaths(net.space, _cost, levels=LEVELS, shift=False, seed=own)
            judged = [[fixed.member(level) for _ in range(JUDGED)] for level in range(LEVELS)]
            shift = name == "shifted levels"
            paths = (
                UniformPaths(net.space, seed=own)
                if name == "uniform"
                else LevelPaths(net.space, _cost, levels=LEVELS, shift=shift, seed=own)
            )
            batches = RandomBatches(data.train.x, data.train.y, seed=own, noise=NOISE)
            train_supernet(net, batches, paths, updates=UPDATES, rate=RATE)
            loss = InheritedQuality(
                net, x, y, measure=lambda outputs, y: float(functional.cross_entropy(outputs, y))
            )
            for row, members in zip(ROWS, judged, strict=True):
                value = fmean(loss(member) for member in members if member is not None)
                found.setdefault(f"{row}: {name}", []).append(value)
    figures = {name: fmean(values) for name, values in found.items()}
    for name in ("uniform", "fixed levels", "shifted levels"):
        ends = (figures[f"lowest: {name}"], figures[f"highest: {name}"])
        figures[f"extreme: {name}"] = fmean(ends)
        figures[f"all levels: {name}"] = fmean(figures[f"{row}: {name}"] for row in ROWS)
    return figures


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def loss(row: str, name: str) -> float:
        return mean(measurements, f"{row}: {name}")

    return (
        loss("extreme", "fixed levels") < loss("extreme", "uniform")
        and loss("middle", "fixed levels") <= 1.02 * loss("middle", "uniform")
        and loss("all levels", "shifted levels") <= loss("all levels", "fixed levels")
    )


CLAIM = Claim(
    slug="shiftnas",
    paper="ShiftNAS: Improving One-shot NAS via Probability Shift",
    year=2023,
    arxiv="2307.08300",
    level="supernet",
    claim="Drawing subnets by level of cost, with rates that shift to levels that still improve, "
    "makes small and large subnets better than uniform options do, at no extra cost.",
    baseline="Uniform options with equal updates; and levels at fixed equal rates.",
    criterion="In the mean over two runs and the seeds, the test loss at the lowest and highest of "
    "five levels is lower with fixed levels than with uniform options, in the middle at most 2% "
    "higher, and over all levels shifted rates are at least as good as fixed ones.",
    quick=quick,
    full=full,
    decide=decide,
    composition="elastic widths · paths by level of cost · rates by what still improves",
    entry="pointsman.supernet.training.LevelPaths",
    key={
        "extreme, shifted": "extreme: shifted levels",
        "extreme, fixed": "extreme: fixed levels",
        "extreme, uniform": "extreme: uniform",
    },
    note="Of the paper only the abstract and summaries were at hand; its learned generator of "
    "paths is replaced by a uniform draw within the level. Levels at fixed rates do what is "
    "claimed; it is the reconstructed shift of the rates that does not improve on them.",
)
