"""Genotypes drawn at random: within the budget, and never the same one twice."""

from collections.abc import Iterable, Iterator

import numpy as np

from pointsman.errors import UnreachableError
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.space import Genotype

# Spaces of at most so many genotypes are listed where drawing by chance finds nothing new.
LISTED = 50_000
TRIES = 200  # draws by chance before that
STARTS = 10  # of the search for the cheapest genotype of a space that is too large to list


class Drawing:
    """Draws affordable genotypes, each once.

    Args:
        problem: the space and the budget.
        rng: of the draws.

    Raises:
        UnreachableError: nothing is within the budget; the message says what the cheapest costs.
    """

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self.problem, self.rng = problem, rng
        self.taken: set[Genotype] = set()
        self._left: Iterator[Genotype] | None = None
        self._start = affordable_start(problem)

    def take(self, genotypes: Iterable[Genotype]) -> None:
        """Never draw these."""
        self.taken.update(genotypes)

    def new(self, genotype: Genotype) -> bool:
        """Whether a genotype is affordable and was neither drawn nor taken."""
        return genotype not in self.taken and self.problem.affordable(genotype)

    def draw(self, count: int) -> list[Genotype]:
        """So many new genotypes, or all that could be found; they are taken then."""
        found: list[Genotype] = []
        while len(found) < count:
            genotype = self._one()
            if genotype is None:
                break
            self.taken.add(genotype)
            found.append(genotype)
        return found

    def _one(self) -> Genotype | None:
        space = self.problem.space
        if self._left is None:
            for _ in range(TRIES):
                genotype = space.sample(self.rng)
                if self.new(genotype):
                    return genotype
            self._left = self._listed() if space.count() <= LISTED else self._walk()
        return next(self._left, None)

    def _listed(self) -> Iterator[Genotype]:
        """The rest of a small space, shuffled."""
        rest = [g for g in self.problem.space.enumerate() if self.new(g)]
        return (rest[at] for at in self.rng.permutation(len(rest)) if self.new(rest[at]))

    def _walk(self) -> Iterator[Genotype]:
        """Affordable neighbours of what is affordable, where nearly nothing is."""
        known = [self._start, *sorted(g for g in self.taken if self.problem.affordable(g))]
        if self.new(self._start):
            yield self._start
        for _ in range(TRIES * TRIES):
            parent = known[self.rng.integers(len(known))]
            child = self.problem.space.mutate(parent, self.rng)
            if self.problem.affordable(child):
                known.append(child)
                if child not in self.taken:
                    yield child


def affordable_start(problem: Problem) -> Genotype:
    """Some genotype within the budget, the same for every seed.

    Raises:
        UnreachableError: nothing is within the budget; the message says what the cheapest costs.
    """
    rng = np.random.default_rng(0)
    for _ in range(TRIES):
        genotype = problem.space.sample(rng)
        if problem.affordable(genotype):
            return genotype
    genotype = cheapest(problem)
    if not problem.affordable(genotype):
        raise UnreachableError(
            f"no genotype of the space costs at most {problem.budget:g} {problem.unit}, the "
            f"cheapest {'' if problem.space.count() <= LISTED else 'found '}costs "
            f"{problem.cost(genotype):g} {problem.unit}: give a budget of that or more"
        )
    return genotype


def cheapest(problem: Problem) -> Genotype:
    """The cheapest genotype; in a space too large to list, the cheapest found by descent."""
    space, cost = problem.space, problem.cost
    if space.count() <= LISTED:
        return min(space.enumerate(), key=lambda g: (cost(g), g))
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(STARTS):
        here = space.sample(rng)
        while True:
            below = min((here, *space.neighbours(here)), key=lambda g: (cost(g), g))
            if below == here:
                break
            here = below
        ends.append(here)
    return min(ends, key=lambda g: (cost(g), g))
