"""Single path one-shot: uniform paths train one set of weights, evolution searches in it.

Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling" (2019, arXiv
1904.00420).

Every update draws one path uniformly, one operation for each choice, and trains that alone. Then
paths are judged with the weights they inherit, after the statistics of batch normalisation were
gathered anew for each, and evolution looks for the best. The parts are `UniformPaths`,
`train_supernet`, `InheritedQuality` and `path_evolution` in `supernet.training`.

What was settled:
- The space is that of cells (125 networks on noisy digits), whose members were all trained alone.
  The supernet sees 600 updates of AdamW; a network alone 200.
- Inherited accuracy is taken on the calibration part, truth is the table's accuracy on the test
  part. The rank correlation is Kendall's tau-b.
- Evolution has generations of 10 and 5 parents instead of 50 and 10, for 40 evaluations in all; its
  baseline draws 40 paths at random, none twice. Both look at the same inherited accuracies, with
  ten seeds each, and what they find is judged by the table.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

UPDATES, EVALUATIONS, SEARCHES = 600, 40, 10


def quick() -> None:
    """Options are drawn uniformly, one path is trained at a time, evolution repeats nothing."""
    import numpy as np

    from pointsman.claims.architectures import CELLS, cell_network, noisy_digits
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.search.run import search
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import (
        RandomBatches,
        UniformPaths,
        path_evolution,
        train_supernet,
    )

    paths = UniformPaths(CELLS, seed=0)
    drawn = np.array([paths.draw(0.0)[0].genotype for _ in range(2000)])
    shares = np.stack([(drawn == option).mean(axis=0) for option in range(5)])
    must(bool((abs(shares - 0.2) < 3 * (0.16 / 2000) ** 0.5).all()), "every option is as likely")
    net, data = Supernet(cell_network(0)), noisy_digits(0).train
    only = UniformPaths(CELLS, accept=lambda genotype: genotype == (2, 3, 1))
    train_supernet(net, RandomBatches(data.x, data.y), only, updates=1)
    moved = [name for name, weight in net.named_parameters() if weight.grad is not None]
    trained = {name.split(".operations.")[1][0] for name in moved if "operations" in name}
    must(trained == {"2", "3"}, f"only the operations of the path are trained, got {trained}")
    problem = Problem(CELLS, lambda genotype: float(sum(genotype)), lambda genotype: 0.0)
    found = search(problem, path_evolution(population=10, parents=5), EVALUATIONS, seed=0)
    must(len({each.genotype for each in found}) == EVALUATIONS, "no evaluation is repeated")
    must(max(each.quality for each in found) >= 11, "evolution climbs")


def full(seed: int) -> Figures:
    """Rank correlation of inherited accuracy with truth, and what two searches find with it."""
    from pointsman.claims.architectures import (
        CELL_RATE,
        CELLS,
        NOISE,
        cell_network,
        cell_table,
        noisy_digits,
    )
    from pointsman.supernet.search.engines.random_search import random_search
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.search.run import search
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import (
        InheritedQuality,
        RandomBatches,
        UniformPaths,
        path_evolution,
        ranking,
        train_supernet,
    )

    data, net = noisy_digits(seed), Supernet(cell_network(seed))
    truth = {genotype: test for genotype, (_, test) in cell_table(seed).items()}
    batches = RandomBatches(data.train.x, data.train.y, seed=seed, noise=NOISE)
    paths = UniformPaths(CELLS, seed=seed)
    train_supernet(net, batches, paths, updates=UPDATES, rate=CELL_RATE)
    x, y = data.calibration.x, data.calibration.y
    noisy = [batches.draw(0.0).x for _ in range(4)]
    agreement, inherited = ranking(InheritedQuality(net, x, y, recalibrate=noisy), truth)
    without, stale = ranking(InheritedQuality(net, x, y), truth)
    found = {
        "recalibrated: Kendall": agreement.kendall,
        "not recalibrated: Kendall": without.kendall,
        "recalibrated: inherited accuracy": sum(inherited.values()) / len(inherited),
        "not recalibrated: inherited accuracy": sum(stale.values()) / len(stale),
        "best there is: accuracy alone": max(truth.values()),
    }
    problem = Problem(CELLS, inherited.__getitem__, lambda genotype: 0.0)
    engines = {"evolution": path_evolution(population=10, parents=5), "random": random_search}
    for name, engine in engines.items():
        chosen, reached = 0.0, 0.0
        for at in range(SEARCHES):
            history = search(problem, engine, EVALUATIONS, seed=at)
            best = max(history, key=lambda each: (each.quality, each.genotype))
            chosen += truth[best.genotype] / SEARCHES
            reached += best.quality / SEARCHES
        found[f"{name}: accuracy alone"] = chosen
        found[f"{name}: inherited accuracy"] = reached
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    tau = mean(measurements, "recalibrated: Kendall")
    return (
        tau >= 0.3
        and tau - mean(measurements, "not recalibrated: Kendall") >= 0.05
        and mean(measurements, "evolution: accuracy alone")
        >= mean(measurements, "random: accuracy alone")
    )


CLAIM = Claim(
    slug="spos",
    paper="Single Path One-Shot Neural Architecture Search with Uniform Sampling",
    year=2019,
    arxiv="1904.00420",
    level="supernet",
    claim="A supernet trained by one uniform path an update ranks its subnets well enough, with "
    "batch statistics gathered anew for each, for evolution to find good ones.",
    baseline="The same supernet without new batch statistics; random search with as many "
    "evaluations.",
    criterion="In the mean over the seeds: Kendall's correlation of inherited with true accuracy "
    "over the 125 cells is at least 0.3, and falls by at least 0.05 without new batch statistics; "
    "and the true accuracy of what evolution picks in 40 evaluations (mean of ten searches) is at "
    "least that of random search.",
    quick=quick,
    full=full,
    decide=decide,
    composition="uniform paths · batch statistics for each subnet · evolution over paths",
    entry="pointsman.supernet.training.UniformPaths",
    key={
        "Kendall": "recalibrated: Kendall",
        "not recalibrated": "not recalibrated: Kendall",
        "evolution": "evolution: accuracy alone",
        "random": "random: accuracy alone",
    },
    note="The ranking is far above what was asked for. New batch statistics matter little in cells "
    "of one layer, and 40 evaluations are a third of this space, which leaves evolution nothing to "
    "gain on random search.",
)
