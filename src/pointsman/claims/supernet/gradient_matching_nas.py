"""Gradient matching: a supernet is split where its options' gradients disagree.

Hu et al., "Generalizing Few-Shot NAS with Gradient Matching" (2022, arXiv 2203.15207).

A supernet is split into several, each with weights of its own for a part of one edge's operations.
Which edge, and which operations stay together, is read off the gradients on the weights that all
share: with each operation in force in turn, operations whose gradients point the same way stay
together. The parts are `best_split` and `split_weights` in `supernet.training`.

What was settled:
- One split into two supernets (of two and three operations), after 150 updates of uniform paths;
  weights are inherited and all are trained on for 250 updates, uniform paths over both. So the
  total is 400 updates in every column, and a split supernet gets half of the last 250.
- Distances are 1 - cosine over all shared weights together, averaged over 10 batches with a random
  path for the other edges each.
- "Random" cuts the same edge into two and three operations in two other ways, drawn by the seed;
  figures are their mean. "One" is not split.
- The rank correlation is Kendall's tau-b within each of the two sub-supernets, averaged; for "one"
  it is taken within the same two groups as gradient matching has. Over all 125 it is shown beside.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

FIRST, SECOND, REPEATS, RANDOM = 150, 250, 10, 2
JUDGED = 794  # two noisy copies of the calibration images


def quick() -> None:
    """The cut finds planted groups, and gradients of like operations are near each other."""
    import numpy as np
    import torch
    from torch import nn

    from pointsman.supernet.elastic.one_of import OneOf
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import RandomBatches, best_split, largest_cut, split_weights

    rng = np.random.default_rng(0)
    for _ in range(20):
        kinds = rng.permutation([0, 0, 1, 1, 1])
        noise = np.triu(rng.uniform(0, 0.3, size=(5, 5)), 1)
        distance = np.where(kinds[:, None] == kinds, 0.2, 0.8) * (1 - np.eye(5)) + noise + noise.T
        groups, _ = largest_cut(distance)
        must(all(len({kinds[at] for at in group}) == 1 for group in groups), "planted groups")
    torch.manual_seed(0)
    same, other = nn.Linear(8, 8), nn.Linear(8, 8)
    options = {
        "a": nn.Sequential(same, nn.Tanh()),
        "b": other,
        "c": nn.Sequential(same, nn.Tanh()),
        "d": nn.Sequential(other),
    }
    alike = OneOf("alike", {"a": nn.Tanh(), "b": nn.Tanh(), "c": nn.Tanh()})
    net = Supernet(nn.Sequential(nn.Linear(6, 8), OneOf("edge", options), alike, nn.Linear(8, 3)))
    x = torch.randn(200, 6)
    split = best_split(net, RandomBatches(x, x[:, :3].argmax(dim=1)), repeats=4)
    must(split.choice == "edge", "options that are all alike are not split")
    found = sorted(split.groups)
    must(found == [(0, 2), (1, 3)], f"equal operations stay together, got {found}")
    must(split_weights(net, "edge", split.groups).space.count() == 12, "the space stays the same")


def full(seed: int) -> Figures:
    """Rank correlation within two sub-supernets: split by gradients, at random, not at all."""
    import copy
    from itertools import combinations
    from statistics import fmean

    import numpy as np

    from pointsman.claims.architectures import (
        CELL_RATE,
        NOISE,
        cell_network,
        cell_table,
        noisy_digits,
    )
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import (
        InheritedQuality,
        RandomBatches,
        UniformPaths,
        best_split,
        ranking,
        split_weights,
        train_supernet,
    )

    data = noisy_digits(seed)

    def batches(own: int) -> RandomBatches:
        return RandomBatches(data.train.x, data.train.y, seed=own, noise=NOISE)

    start = Supernet(cell_network(seed))
    train_supernet(
        start,
        batches(seed),
        UniformPaths(start.space, seed=seed),
        updates=FIRST,
        rate=CELL_RATE,
    )
    split = best_split(start, batches(seed + 10), repeats=REPEATS, seed=seed)
    place = start.space.names.index(split.choice)
    smaller = [pair for pair in combinations(range(5), 2) if pair != split.groups[0]]
    drawn = np.random.default_rng(seed).permutation(len(smaller))[:RANDOM]
    cuts = {"gradients": split.groups, "one": None}
    for at in drawn:
        rest = tuple(o for o in range(5) if o not in smaller[at])
        cuts[f"random {at}"] = (smaller[at], rest)
    statistics = [batches(seed).draw(0.0).x for _ in range(3)]
    found: dict[str, list[float]] = {}
    for name, groups in cuts.items():
        net = copy.deepcopy(start)
        net = split_weights(net, split.choice, groups) if groups else net
        paths = UniformPaths(net.space, seed=seed + 20)
        train_supernet(net, batches(seed + 20), paths, updates=SECOND, rate=CELL_RATE)
        to = [net.space.names.index(each) for each in start.space.names]
        truth = {_moved(g, to): test for g, (_, test) in cell_table(seed).items()}
        x, y = data.calibration.x[:JUDGED], data.calibration.y[:JUDGED]
        quality = InheritedQuality(net, x, y, recalibrate=statistics)
        whole, values = ranking(quality, truth)
        within = [
            ranking(values.__getitem__, {g: v for g, v in truth.items() if g[to[place]] in group})
            for group in groups or split.groups
        ]
        row = name.split()[0]
        found.setdefault(f"{row}: Kendall within", []).append(fmean(a.kendall for a, _ in within))
        found.setdefault(f"{row}: Kendall of all", []).append(whole.kendall)
    figures = {name: fmean(values) for name, values in found.items()}
    return {**figures, "split: edge": float(place), "split: distance": split.distance}


def _moved(genotype: tuple[int, ...], to: Sequence[int]) -> tuple[int, ...]:
    """A genotype of the first space in the order of another."""
    moved = dict(zip(to, genotype, strict=True))
    return tuple(moved[at] for at in range(len(moved)))


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    split = mean(measurements, "gradients: Kendall within")
    return split >= mean(measurements, "random: Kendall within")


CLAIM = Claim(
    slug="gradient-matching-nas",
    paper="Generalizing Few-Shot NAS with Gradient Matching",
    year=2022,
    arxiv="2203.15207",
    level="supernet",
    claim="A supernet that is split where its operations' gradients disagree ranks its subnets "
    "better than one split at random.",
    baseline="Random balanced splits of the same edge with equal updates; and no split.",
    criterion="Kendall's correlation of inherited with true accuracy within the two "
    "sub-supernets, in the mean over both and over the seeds, is at least that of random balanced "
    "splits of the same edge.",
    quick=quick,
    full=full,
    decide=decide,
    composition="uniform paths · cut by gradient agreement · a set of weights for each group",
    entry="pointsman.supernet.training.best_split",
    key={
        "by gradients": "gradients: Kendall within",
        "at random": "random: Kendall within",
        "not split": "one: Kendall within",
    },
)
