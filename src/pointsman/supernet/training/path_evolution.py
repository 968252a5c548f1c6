"""Evolution over the paths of a trained supernet.

The search of Guo et al. 2019, "Single path one-shot neural architecture search with uniform
sampling", arXiv 1904.00420: half of each generation crosses two of the best paths so far, half
mutates one of them, and paths beyond the budget are drawn again.

Where we depart: a child that is known already is not evaluated again; where breeding finds nothing
new, the generation is filled up with random paths.
"""

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Engine, Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

TRIES = 50  # children bred for one that is new


def path_evolution(*, population: int = 50, parents: int = 10, rate: float = 0.1) -> Engine:
    """A search engine for the best quality within the problem's budget.

    Args:
        population: paths of a generation; the first are drawn at random.
        parents: how many of the best paths so far breed.
        rate: probability with which a mutation changes each choice.

    Raises:
        InputError: fewer than two in a generation, no parent, or a rate outside of (0, 1].
    """
    if population < 2 or parents < 1 or not 0 < rate <= 1:
        raise InputError(
            "a generation has two paths or more, at least one parent, and a rate in (0, 1], got "
            f"population={population}, parents={parents}, rate={rate}"
        )

    def engine(problem: Problem, seed: int) -> Proposals:
        rng = np.random.default_rng(seed)
        drawing = Drawing(problem, rng)
        known: list[Evaluation] = []
        batch = drawing.draw(population)
        while batch:
            answers = yield batch
            known += [each for each in answers if not each.failed]
            known.sort(key=lambda each: (-each.quality, each.genotype))
            best = [each.genotype for each in known[:parents]]
            batch = _generation(drawing, best, population, rate)

    return engine


def _generation(
    drawing: Drawing, best: list[Genotype], population: int, rate: float
) -> list[Genotype]:
    """Half crossed, half mutated, the rest random; none known."""
    space, rng = drawing.problem.space, drawing.rng
    found: list[Genotype] = []
    for crossed in range(population if best else 0):
        for _ in range(TRIES):
            one, other = (best[rng.integers(len(best))] for _ in range(2))
            child = (
                space.cross(one, other, rng)
                if crossed < population // 2
                else space.mutate(one, rng, rate)
            )
            if drawing.new(child):
                drawing.take([child])
                found.append(child)
                break
    return found + drawing.draw(population - len(found))
