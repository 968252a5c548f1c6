"""LINAS: predictors and measurements in turn (Cummings et al. 2022, arXiv 2202.12954).

A population is evaluated; predictors are fitted to all evaluations so far; a long NSGA-II runs on
the predictors alone; the population it ends with is evaluated next. Only evaluated genotypes count.

Where we depart: genotypes that were evaluated before are not evaluated again, and the cost is
counted (`exact_costs`), where the paper's code predicts it like the quality.
"""

from collections.abc import Sequence

import numpy as np

from pointsman.supernet.predictors.gaussian import Array
from pointsman.supernet.predictors.quality import QualityPredictor
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.engines.evolution import beyond_budget, started, tell
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

POPULATION, GENERATIONS = 50, 100


def linas(
    problem: Problem,
    seed: int,
    *,
    population: int = POPULATION,
    generations: int = GENERATIONS,
    exact_costs: bool = True,
) -> Proposals:
    """Alternates between evaluating a population and evolving the next one on predictors.

    Args:
        problem: what is searched.
        seed: of the first population, the predictors' folds and every evolution.
        population: genotypes evaluated at a time, and of the evolution on predictors.
        generations: of the evolution on predictors.
        exact_costs: count the cost of each candidate; otherwise it is predicted too, and counted
            for the budget alone.

    Raises:
        InputError: a population of fewer than two, or pymoo is not installed.
    """
    drawing = Drawing(problem, np.random.default_rng(seed))
    known: list[Evaluation] = []
    proposed = drawing.draw(population)
    turn = 0
    while proposed:
        known += yield proposed
        turn += 1
        evolved = []
        if sum(not each.failed for each in known) > 1:
            evolved = _evolved(problem, known, (seed, turn), population, generations, exact_costs)
        proposed = [g for g in dict.fromkeys(evolved) if drawing.new(g)]
        drawing.take(proposed)
        proposed = proposed or drawing.draw(population)


def _evolved(
    problem: Problem,
    known: Sequence[Evaluation],
    seed: tuple[int, int],
    population: int,
    generations: int,
    exact_costs: bool,
) -> list[Genotype]:
    """The last population of an evolution on predictors, best first as far as it has an order."""
    ran = [each for each in known if not each.failed]
    genotypes = [each.genotype for each in ran]
    quality = QualityPredictor(problem.space).fit(genotypes, [each.quality for each in ran])
    cost = QualityPredictor(problem.space).fit(genotypes, [each.cost for each in ran])

    def judged(asked: Sequence[Genotype]) -> Array:
        spent = [problem.cost(g) for g in asked] if exact_costs else cost.predict(asked)
        return np.stack([-quality.predict(asked), spent], 1)

    draw = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)
    algorithm = started(problem.space, draw, population=population)
    for _ in range(generations):
        asked = algorithm.ask()
        if asked is None:  # mating gives nothing that the population does not hold
            break
        found = [problem.space.canonical(row) for row in asked.get("X").round().astype(int)]
        tell(algorithm, asked, judged(found), beyond_budget(problem, found))
    return [problem.space.canonical(row) for row in algorithm.pop.get("X").round().astype(int)]
