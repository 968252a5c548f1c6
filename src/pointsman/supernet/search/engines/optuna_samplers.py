"""Any sampler of optuna as an engine: its NSGA-II, its TPE, or one given."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

REPEATS = 20  # proposals in a row that were seen before, after which one is drawn by chance


def tpe(problem: Problem, seed: int) -> Proposals:
    """Tree-structured Parzen estimators (Bergstra et al. 2011), for two goals (Ozaki et al. 2020).

    Args:
        problem: what is searched.
        seed: of the sampler.

    Raises:
        InputError: optuna is not installed.
    """
    return sampled(problem, seed, _samplers().TPESampler(seed=seed))


def optuna_nsga2(problem: Problem, seed: int, *, population: int = 50) -> Proposals:
    """NSGA-II as optuna has it.

    Args:
        problem: what is searched.
        seed: of the sampler.
        population: genotypes of a generation.

    Raises:
        InputError: optuna is not installed.
    """
    return sampled(problem, seed, _samplers().NSGAIISampler(population_size=population, seed=seed))


def sampled(problem: Problem, seed: int, sampler: "BaseSampler") -> Proposals:
    """Asks a sampler of optuna; what it proposes again is answered from memory.

    What is beyond the budget is told as a failed trial, which samplers leave out of their models.

    Args:
        problem: what is searched.
        seed: of the genotypes drawn where the sampler only repeats itself.
        sampler: new, with a seed of its own; for two goals.

    Raises:
        InputError: optuna is not installed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    drawing = Drawing(problem, np.random.default_rng(seed))
    seen: dict[Genotype, Evaluation] = {}
    repeats = 0
    while True:
        trial = study.ask()
        genotype = _suggested(trial, problem)
        if genotype in seen or not problem.affordable(genotype):
            _tell(study, trial, seen.get(genotype))
            repeats += 1
            if repeats < REPEATS:
                continue
            drawn = drawing.draw(1)
            if not drawn:
                return
            study.enqueue_trial(_parameters(problem, drawn[0]))
            trial = study.ask()
            genotype = _suggested(trial, problem)
        repeats = 0
        drawing.take([genotype])
        (seen[genotype],) = yield [genotype]
        _tell(study, trial, seen[genotype])


def _suggested(trial: "Trial", problem: Problem) -> Genotype:
    """Choices among numbers as an integer, others as a category; only those that matter."""
    space = problem.space
    taken = [0] * len(space.choices)
    for place, choice in enumerate(space.choices):
        if not space.active((*taken[:place], *[0] * (len(taken) - place)))[place]:
            continue
        size = len(choice.options)
        if all(type(option) in (int, float) for option in choice.options):
            taken[place] = trial.suggest_int(choice.name, 0, size - 1)
        else:
            taken[place] = int(trial.suggest_categorical(choice.name, list(range(size))))
    return space.canonical(taken)


def _parameters(problem: Problem, genotype: Genotype) -> dict[str, int]:
    active = problem.space.active(genotype)
    return {n: i for n, i, on in zip(problem.space.names, genotype, active, strict=True) if on}


def _tell(study: "Study", trial: "Trial", known: Evaluation | None) -> None:
    from optuna.trial import TrialState

    if known is None or known.failed:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, [known.quality, known.cost])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError(
            'this engine runs on optuna, which is not installed: pip install "pointsman[search]"'
        ) from None
    return optuna


def _samplers() -> Any:
    return _optuna().samplers
