"""NSGA-II as pymoo has it (Deb et al. 2002, IEEE Transactions on Evolutionary Computation 6(2))."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.space import Genotype, Space

Array = np.ndarray[Any, np.dtype[np.float64]]

POPULATION = 20
IDLE = 20  # generations without a new genotype, after which some are drawn by chance


def nsga2(
    problem: Problem, seed: int, *, population: int = POPULATION, mutation: float | None = None
) -> Proposals:
    """Evolves a population by rank and crowding; what it has seen before costs nothing again.

    A budget is a constraint: beyond it nothing is evaluated, the nearer to it the better.

    Args:
        problem: what is searched.
        seed: of everything that is drawn.
        population: genotypes of a generation, at least two.
        mutation: probability for each choice; None: one change in a child on average.

    Raises:
        InputError: a population of fewer than two, or pymoo is not installed.
    """
    drawing = Drawing(problem, np.random.default_rng(seed))
    algorithm = started(problem.space, seed, population=population, mutation=mutation)
    seen: dict[Genotype, float] = {}
    idle = 0
    while True:
        asked = algorithm.ask()
        if asked is None:  # mating gives nothing that the population does not hold
            break
        genotypes = [problem.space.canonical(row) for row in asked.get("X").round().astype(int)]
        new = [genotype for genotype in dict.fromkeys(genotypes) if drawing.new(genotype)]
        idle = 0 if new else idle + 1
        if idle == IDLE:
            new, idle = drawing.draw(population), 0
            if not new:
                return
        if new:
            drawing.take(new)
            for each in (yield new):
                seen[each.genotype] = np.inf if each.failed else -each.quality
        goals = _judged(genotypes, seen, problem)
        tell(algorithm, asked, goals, beyond_budget(problem, genotypes))
    while drawn := drawing.draw(population):
        yield drawn


def _judged(
    genotypes: Sequence[Genotype], seen: Mapping[Genotype, float], problem: Problem
) -> Array:
    """(N, 2) loss and cost; what failed is worse than anything that ran."""
    worst = max((value for value in seen.values() if np.isfinite(value)), default=0.0)
    loss = [seen.get(genotype, np.inf) for genotype in genotypes]
    costs = [problem.cost(genotype) for genotype in genotypes]
    return np.stack([[x if np.isfinite(x) else worst + 1 for x in loss], costs], 1)


def beyond_budget(problem: Problem, genotypes: Sequence[Genotype]) -> Array:
    """(N,) what each costs beyond the budget: at most 0 if it is affordable."""
    if problem.budget is None:
        return np.full(len(genotypes), -1.0)
    return np.array([problem.cost(genotype) - problem.budget for genotype in genotypes])


def tell(algorithm: Any, asked: Any, goals_N2: Array, beyond_N: Array) -> None:
    """Answer pymoo: two goals to be low, and a number to be at most 0, for each asked for."""
    from pymoo.core.evaluator import Evaluator
    from pymoo.problems.static import StaticProblem

    static = StaticProblem(algorithm.problem, F=goals_N2, G=beyond_N[:, None])
    Evaluator().eval(static, asked)
    algorithm.tell(infills=asked)


def started(
    space: Space,
    seed: int,
    *,
    population: int = POPULATION,
    mutation: float | None = None,
) -> Any:
    """pymoo's algorithm on option indices, to be asked and told: two goals and a constraint.

    Simulated binary crossover (0.9, index 15) and polynomial mutation (index 20), both rounded, as
    in DyNAS-T's searches (Cummings et al. 2022, arXiv 2202.12954).

    Args:
        space: of the genotypes.
        seed: of everything that is drawn.
        population: at least two.
        mutation: probability for each choice; None: one change in a child on average.

    Raises:
        InputError: a population of fewer than two, or pymoo is not installed.
    """
    if population < 2:
        raise InputError(f"evolution needs a population of at least two, got {population}")
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem as Box
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
    except ImportError:
        raise InputError(
            'this engine runs on pymoo, which is not installed: pip install "pointsman[search]"'
        ) from None
    high = np.array([len(choice.options) - 1 for choice in space.choices])
    box = Box(n_var=len(high), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(high)), xu=high, vtype=int)
    rounded = {"vtype": float, "repair": RoundingRepair()}
    rate = {} if mutation is None else {"prob": 1.0, "prob_var": mutation}
    algorithm = NSGA2(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=15, **rounded),
        mutation=PM(eta=20, **rate, **rounded),
        eliminate_duplicates=True,
        n_max_iterations=10,  # of mating for new children, which a small space runs out of
    )
    algorithm.setup(box, termination=("n_gen", 10**9), seed=seed, verbose=False)
    return algorithm
