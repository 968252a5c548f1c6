"""Random search: the baseline of every other engine."""

import numpy as np

from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Problem


def random_search(problem: Problem, seed: int, *, batch: int = 1) -> Proposals:
    """Draws affordable genotypes, none twice, until there are no more.

    Args:
        problem: what is searched.
        seed: of the draws.
        batch: genotypes at a time.
    """
    drawing = Drawing(problem, np.random.default_rng(seed))
    while drawn := drawing.draw(batch):
        yield drawn
