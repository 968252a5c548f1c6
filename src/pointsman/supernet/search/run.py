"""Run an engine on a problem: evaluate what it proposes, each genotype once."""

import math
from collections.abc import Callable, Iterable, Sequence

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import affordable_start
from pointsman.supernet.search.engine import Engine
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

# Batches in a row that hold nothing new, after which an engine is taken to have nothing more.
PATIENCE = 100

# (problem, genotypes) -> their evaluations as they are done, in any order, wherever that is
Evaluate = Callable[[Problem, Sequence[Genotype]], Iterable[Evaluation]]


def evaluate_here(problem: Problem, genotypes: Sequence[Genotype]) -> Iterable[Evaluation]:
    """One after another in this process."""
    return (evaluate(problem, genotype) for genotype in genotypes)


def evaluate(problem: Problem, genotype: Genotype) -> Evaluation:
    """Quality and cost of one genotype; an error or a NaN is a failure that names itself."""
    cost = problem.cost(genotype)
    try:
        quality = float(problem.quality(genotype))
    except Exception as error:  # whatever a user's network does for one choice
        return Evaluation(genotype, math.nan, cost, f"{type(error).__name__}: {error}")
    if math.isnan(quality):
        return Evaluation(genotype, math.nan, cost, "the quality is not a number")
    return Evaluation(genotype, quality, cost)


def search(
    problem: Problem,
    engine: Engine,
    evaluations: int,
    *,
    seed: int = 0,
    known: Iterable[Evaluation] = (),
    evaluate: Evaluate = evaluate_here,
    found: Callable[[Evaluation], None] = lambda evaluation: None,
) -> list[Evaluation]:
    """Every evaluation of one search, in order; each genotype at most once.

    Args:
        problem: what is searched.
        engine: what proposes. What it proposes beyond the budget is answered as failed, without
            being evaluated or counted.
        evaluations: how many genotypes at most, those that are known among them.
        seed: of the engine.
        known: evaluations of an earlier run of the same engine and seed, which are not repeated.
        evaluate: where genotypes are evaluated.
        found: called with each new evaluation as soon as it is there.

    Raises:
        InputError: less than one evaluation.
        UnreachableError: nothing is within the budget; the message says what the cheapest costs.
    """
    if evaluations < 1:
        raise InputError(f"a search evaluates at least one genotype, got {evaluations}")
    affordable_start(problem)
    memory = {each.genotype: each for each in known}
    history: dict[Genotype, Evaluation] = {}
    refused: dict[Genotype, Evaluation] = {}
    proposals = engine(problem, seed)
    batch = _canonical(problem, next(proposals, ()))
    idle = 0
    while batch and idle < PATIENCE:
        new = [g for g in dict.fromkeys(batch) if g not in history]
        refused.update((g, _refused(problem, g)) for g in new if not problem.affordable(g))
        fresh = [g for g in new if g not in refused][: evaluations - len(history)]
        idle = 0 if fresh else idle + 1
        missing = [genotype for genotype in fresh if genotype not in memory]
        for each in evaluate(problem, missing) if missing else ():
            memory[each.genotype] = each
            found(each)
        history.update((genotype, memory[genotype]) for genotype in fresh)
        if len(history) == evaluations:
            break
        try:
            answers = [history.get(genotype) or refused[genotype] for genotype in batch]
            batch = _canonical(problem, proposals.send(answers))
        except StopIteration:
            break
    proposals.close()
    return list(history.values())


def _canonical(problem: Problem, batch: Sequence[Genotype]) -> list[Genotype]:
    return [problem.space.canonical(genotype) for genotype in batch]


def _refused(problem: Problem, genotype: Genotype) -> Evaluation:
    """The answer to an engine that asks for more than the budget: nothing was evaluated."""
    return Evaluation(genotype, math.nan, problem.cost(genotype), "beyond the budget")
