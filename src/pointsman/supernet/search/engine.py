"""What a search engine is: a generator that asks for evaluations and is sent their results.

    def engine(problem: Problem, seed: int) -> Proposals:
        while True:
            evaluations = yield [genotypes to evaluate]

It ends by itself only where there is nothing left to propose: the one who runs it stops asking. An
engine is a function of what it was sent and of its seed alone, so a search that was cut is resumed
by running its engine again from the start and answering from the history; nothing of the engine
itself is stored. A batch is evaluated in any order and answered in the order asked.
"""

from collections.abc import Callable, Generator, Sequence

from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

Proposals = Generator[Sequence[Genotype], Sequence[Evaluation], None]
Engine = Callable[[Problem, int], Proposals]
