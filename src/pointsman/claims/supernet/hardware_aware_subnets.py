"""Hardware-aware subnets (LINAS): evaluations and predictors in turn find the front with fewer.

Cummings et al., "A Hardware-Aware System for Accelerating Deep Neural Network Optimization" (2022,
arXiv 2202.12954); the search itself is described in arXiv 2202.12954.

A population of random subnets is evaluated; a predictor for each objective is fitted to all
evaluations so far; NSGA-II runs long on the predictors alone; the population it ends with is
evaluated next, and so on. The front is that of the evaluated subnets only. The part is
`supernet.search.engines.linas`.

What was settled:
- A synthetic space, ten choices of four options: quality is a saturating gain for each choice plus
  random interactions of pairs, cost is a weighted sum of the options' sizes. So no evaluation is
  noisy, and a million subnets are too many to list.
- As in the paper, cost is predicted too (`exact_costs=False`), and the predictor is the better of
  ridge and support vectors in cross-validation. The population is 25 and not 50, so that half of
  the budget leaves room for more than one turn; 50 generations on predictors.
- NSGA-II without predictors has 20 genotypes a generation and one mutation in a child on average,
  the better of two settings on another space (50 and 0.02 is what the paper's code uses).
- A repeated subnet is answered from memory and not counted, for all three alike.
- Shares are of the hypervolume of everything that the three found together, three spaces a seed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.search.problem import Problem

CHOICES, OPTIONS = 10, 4
EVALUATIONS = 150
POPULATION, GENERATIONS = 25, 50
SPACES = 3  # of each seed


def synthetic(seed: int) -> "Problem":
    """A space with gains that saturate, interactions of pairs, and weighted sizes as cost."""
    import numpy as np

    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.space import Choice, Genotype, Space

    rng = np.random.default_rng(seed)
    gains_C, prices_C = rng.uniform(0.2, 1, CHOICES), rng.uniform(0.2, 1, CHOICES)
    curve_O = 1 - np.exp(-np.arange(OPTIONS))
    pairs_CCOO = rng.normal(0, 0.08, (CHOICES, CHOICES, OPTIONS, OPTIONS))

    def quality(genotype: Genotype) -> float:
        taken = np.array(genotype)
        alone = gains_C @ curve_O[taken]
        before, after = np.triu_indices(CHOICES, 1)
        return float(alone + pairs_CCOO[before, after, taken[before], taken[after]].sum())

    def cost(genotype: Genotype) -> float:
        return float(prices_C @ (np.array(genotype) + 1.0))

    space = Space([Choice(f"choice {at}", tuple(range(1, OPTIONS + 1))) for at in range(CHOICES)])
    return Problem(space, quality, cost, "units")


def quick() -> None:
    """Only evaluated subnets are reported, each once, and predictions put the better ones first."""
    import numpy as np

    from pointsman.supernet.predictors import QualityPredictor
    from pointsman.supernet.search.engines.linas import linas
    from pointsman.supernet.search.run import search

    problem = synthetic(0)

    def engine(problem: "Problem", seed: int):  # type: ignore[no-untyped-def]
        return linas(problem, seed, population=10, generations=5)

    history = search(problem, engine, 30)
    must(len({each.genotype for each in history}) == 30, "no subnet is evaluated twice")
    must(all(e.quality == problem.quality(e.genotype) for e in history), "qualities are evaluated")
    must(all(e.cost == problem.cost(e.genotype) for e in history), "costs are counted")
    rng = np.random.default_rng(1)
    drawn = list(dict.fromkeys(problem.space.sample(rng) for _ in range(160)))
    quality = np.array([problem.quality(genotype) for genotype in drawn])
    predictor = QualityPredictor(problem.space).fit(drawn[:80], quality[:80].tolist())
    agreement = np.corrcoef(predictor.predict(drawn[80:]), quality[80:])[0, 1]
    must(agreement > 0.7, f"predictions agree with the truth, got {agreement:.2f}")


def full(seed: int) -> Figures:
    """Share of the hypervolume after half and after all evaluations, mean over the spaces."""
    from functools import partial

    from pointsman.supernet.search.engine import Engine
    from pointsman.supernet.search.engines.evolution import nsga2
    from pointsman.supernet.search.engines.linas import linas
    from pointsman.supernet.search.engines.random_search import random_search
    from pointsman.supernet.search.hypervolume import hypervolume_share
    from pointsman.supernet.search.run import search

    paper = partial(linas, population=POPULATION, generations=GENERATIONS, exact_costs=False)
    engines: dict[str, Engine] = {"LINAS": paper, "NSGA-II": nsga2, "random": random_search}
    found: dict[str, float] = {}
    for at in range(SPACES):
        problem = synthetic(1000 * (seed + 1) + at)
        histories = {
            name: search(problem, engine, EVALUATIONS, seed=seed)
            for name, engine in engines.items()
        }
        together = [each for history in histories.values() for each in history]
        for name, history in histories.items():
            for count in (EVALUATIONS // 2, EVALUATIONS):
                row = f"{count} evaluations: {name}"
                share = hypervolume_share(history[:count], together)
                found[row] = found.get(row, 0.0) + share / SPACES
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, f"{EVALUATIONS} evaluations: LINAS")
    half = mean(measurements, f"{EVALUATIONS // 2} evaluations: LINAS")
    evolved = mean(measurements, f"{EVALUATIONS} evaluations: NSGA-II")
    drawn = mean(measurements, f"{EVALUATIONS} evaluations: random")
    return ours >= evolved + 0.02 and ours >= drawn + 0.02 and half >= evolved


CLAIM = Claim(
    slug="hardware-aware-subnets",
    paper="A Hardware-Aware System for Accelerating Deep Neural Network Optimization",
    year=2022,
    arxiv="2202.12954",
    level="supernet",
    claim="Evaluating in turn with evolution on cheap predictors finds the front of a supernet "
    "with far fewer evaluations than evolution without predictors.",
    baseline="NSGA-II without predictors and random search without repeats, on equal evaluations.",
    criterion="In the mean over seeds of three spaces each: after 150 evaluations LINAS has at "
    "least 2 points more of the hypervolume than NSGA-II and than random search, and after 75 it "
    "has at least as much as NSGA-II after 150.",
    quick=quick,
    full=full,
    decide=decide,
    composition="cross-validated predictors · NSGA-II on predictions · evaluations in turn",
    entry="pointsman.supernet.search.engines.linas.linas",
    key={
        "LINAS, half": f"{EVALUATIONS // 2} evaluations: LINAS",
        "LINAS": f"{EVALUATIONS} evaluations: LINAS",
        "NSGA-II": f"{EVALUATIONS} evaluations: NSGA-II",
        "random": f"{EVALUATIONS} evaluations: random",
    },
)
