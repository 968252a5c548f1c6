"""PA&DA: paths and data are drawn at rates that grow with their gradients.

Lu et al., "PA&DA: Jointly Sampling PAth and DAta for Consistent NAS" (2023, arXiv 2302.14772).

A supernet's gradient varies with the path and the data that an update draws. Its variance is least
if both are drawn in proportion to the norm of their gradients. The norm of an operation is that of
its weights, of an example that of the loss at its logits; both distributions are revised as the
training goes on and mixed with a uniform one, whose share falls from 1 to 0. The parts are
`ImportancePaths` and `ImportanceBatches` in `supernet.training`.

What was settled:
- The paper's code does not divide by the sampling probability, and draws from one distribution over
  operations for all edges: so does the claim. Dividing is an option (`reweight=True`), which the
  mechanism checks: it keeps the mean gradient and lowers its variance.
- Distributions are revised every 8 updates, about an epoch of 1,000 examples in batches of 128.
- Two supernets of each kind are trained for each seed, with weights, paths and batches of their
  own: 300 updates, AdamW. They are judged on two noisy copies of the calibration images, with batch
  statistics gathered for each cell. Rank correlation is Kendall's tau-b with the truth of all 125.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

UPDATES, SUPERNETS, JUDGED = 300, 2, 794


def quick() -> None:
    """Drawn by norm and divided by its chance, a mean keeps its value and loses variance."""
    import numpy as np

    from pointsman.supernet.training.importance import mixed_with_uniform

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 10)) * rng.pareto(1.5, size=(200, 1))
    norms, truth = np.linalg.norm(vectors, axis=1), vectors.mean(axis=0)

    def spread(tau: float, divide: bool) -> tuple[float, float]:
        chance = mixed_with_uniform(norms, tau)
        weighted = vectors / (200 * chance[:, None]) if divide else vectors
        expected = chance @ weighted
        variance = chance @ ((weighted - expected) ** 2).sum(axis=1)
        return float(variance), float(np.linalg.norm(expected - truth))

    uniform, by_norm, biased = spread(0, True), spread(1, True), spread(1, False)
    must(by_norm[1] < 1e-9, "the mean is kept")
    must(by_norm[0] < 0.7 * uniform[0], f"less variance, got {by_norm[0]} and {uniform[0]}")
    must(spread(0.5, True)[0] < uniform[0], "and so it is half-way")
    must(biased[1] > 0.5 * float(np.linalg.norm(truth)), "without division the mean moves")


def full(seed: int) -> Figures:
    """Rank correlation with truth of supernets trained on uniform and on weighted draws."""
    from statistics import fmean

    from pointsman.claims.architectures import (
        CELL_RATE,
        CELLS,
        NOISE,
        cell_network,
        cell_table,
        noisy_digits,
    )
    from pointsman.supernet.supernet import Supernet
    from pointsman.supernet.training import (
        ImportanceBatches,
        ImportancePaths,
        InheritedQuality,
        RandomBatches,
        UniformPaths,
        ranking,
        train_supernet,
    )

    data = noisy_digits(seed)
    truth = {genotype: test for genotype, (_, test) in cell_table(seed).items()}
    tops = sorted(truth, key=lambda genotype: -truth[genotype])[:30]
    taus: dict[str, list[float]] = {}
    for own in range(seed * SUPERNETS, (seed + 1) * SUPERNETS):
        for name in ("uniform", "weighted"):
            net = Supernet(cell_network(own))
            uniform = RandomBatches(data.train.x, data.train.y, seed=own, noise=NOISE)
            if name == "uniform":
                train_supernet(
                    net, uniform, UniformPaths(CELLS, seed=own), updates=UPDATES, rate=CELL_RATE
                )
            else:
                paths = ImportancePaths(CELLS, shared=True, period=8, seed=own)
                examples = ImportanceBatches(uniform)
                train_supernet(net, examples, paths, updates=UPDATES, rate=CELL_RATE)
                chances = zip(CELLS.choices[0].options, paths.probabilities[0], strict=True)
                for option, chance in chances:
                    taus.setdefault(f"weighted: last chance of {option}", []).append(float(chance))
            fresh = RandomBatches(data.train.x, data.train.y, seed=own, noise=NOISE)
            statistics = [fresh.draw(0.0).x for _ in range(3)]
            x, y = data.calibration.x[:JUDGED], data.calibration.y[:JUDGED]
            quality = InheritedQuality(net, x, y, recalibrate=statistics)
            agreement, values = ranking(quality, truth)
            taus.setdefault(f"{name}: Kendall", []).append(agreement.kendall)
            taus.setdefault(f"{name}: Kendall of the best 30", []).append(
                ranking(values.__getitem__, {g: truth[g] for g in tops})[0].kendall
            )
            best = max(values, key=lambda genotype: (values[genotype], genotype))
            taus.setdefault(f"{name}: accuracy alone of its best", []).append(truth[best])
    return {name: fmean(values) for name, values in taus.items()}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    weighted = mean(measurements, "weighted: Kendall")
    return weighted >= mean(measurements, "uniform: Kendall") - 0.02


CLAIM = Claim(
    slug="pa-da",
    paper="PA&DA: Jointly Sampling PAth and DAta for Consistent NAS",
    year=2023,
    arxiv="2302.14772",
    level="supernet",
    claim="Drawing paths and examples by the size of their gradients gives a supernet that ranks "
    "its subnets at least as well as uniform draws do, at hardly any cost.",
    baseline="Uniform paths and examples, with equal updates.",
    criterion="Kendall's correlation of inherited with true accuracy over the 125 cells, in the "
    "mean over two supernets for each seed, is at most 0.02 below that of uniform draws.",
    quick=quick,
    full=full,
    decide=decide,
    composition="paths by gradient norm · examples by the gradient at their logits",
    entry="pointsman.supernet.training.ImportancePaths",
    key={"weighted": "weighted: Kendall", "uniform": "uniform: Kendall"},
)
