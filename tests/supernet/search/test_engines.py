"""What every engine keeps to, and what each does."""

import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.search.engines.conservative import conservative
from pointsman.supernet.search.engines.evolution import nsga2
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.engines.linas import linas
from pointsman.supernet.search.engines.optuna_samplers import optuna_nsga2, tpe
from pointsman.supernet.search.engines.random_search import random_search
from pointsman.supernet.search.engines.reinforce import reinforce
from pointsman.supernet.search.hypervolume import hypervolume_share
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Space

SMALL = Space(
    [
        Choice("depth", (1, 2, 3)),
        Choice("operation", ("convolution", "pool", "skip")),
        Choice("width", (8, 16, 32, 64)),
        Choice("kernel", (3, 5), when=("operation", ("convolution",))),
    ]
)
LARGE = Space([Choice(f"layer {at}", (1, 2, 3, 4)) for at in range(10)])

ENGINES = {
    "random": random_search,
    "front_search": partial(front_search, first=6),
    "front_search, batches": partial(front_search, first=6, batch=4),
    "nsga2": partial(nsga2, population=6),
    "optuna_nsga2": partial(optuna_nsga2, population=6),
    "tpe": tpe,
    "linas": partial(linas, population=6, generations=2),
    "reinforce": partial(reinforce, batch=4),
    "conservative": conservative,
}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def small_quality(genotype):
    taken = SMALL.decode(genotype)
    return (
        taken["depth"]
        + math.log2(taken["width"])
        + {"convolution": 2, "pool": 1, "skip": 0}[taken["operation"]]
        + 0.1 * taken.get("kernel", 0)
    )


def small_cost(genotype):
    taken = SMALL.decode(genotype)
    return taken["depth"] * taken["width"] * taken.get("kernel", 1)


def small(**changes):
    return Problem(**{"space": SMALL, "quality": small_quality, "cost": small_cost, **changes})


def large(seed, budget=None):
    rng = np.random.default_rng(seed)
    alone, pairs = rng.random((10, 4)), rng.normal(size=(10, 10, 4, 4)) / 8

    def quality(genotype):
        value = sum(alone[at, index] * math.sqrt(index + 1) for at, index in enumerate(genotype))
        for at, index in enumerate(genotype[1:]):
            value += pairs[at, at + 1, genotype[at], index]
        return float(value)

    return Problem(LARGE, quality, lambda g: float(sum(i + 1 for i in g)), budget=budget)


@every_engine
def test_nothing_is_evaluated_twice_and_a_cut_search_goes_on_from_what_is_known(engine):
    asked = []
    problem = small(quality=lambda g: asked.append(g) or small_quality(g))
    history = search(problem, engine, 18, seed=3)
    assert len(history) == len(asked) == len(set(asked)) == 18
    assert all(SMALL.canonical(genotype) == genotype for genotype in asked)
    asked.clear()
    assert search(problem, engine, 18, seed=3, known=history[:8]) == history
    assert asked == [each.genotype for each in history[8:]]


@every_engine
def test_nothing_beyond_the_budget_is_evaluated(engine):
    asked = []
    problem = small(quality=lambda g: asked.append(g) or small_quality(g), budget=33)
    search(problem, engine, 10, seed=0)
    assert len(asked) == 10
    assert max(small_cost(genotype) for genotype in asked) <= 33


@every_engine
def test_a_budget_that_nothing_meets_says_what_the_cheapest_costs(engine):
    with pytest.raises(UnreachableError, match="the cheapest costs 8 MFLOPs: give a budget"):
        search(small(budget=5), engine, 10)


@every_engine
def test_failures_are_kept_and_the_search_goes_on(engine):
    def quality(genotype):
        if SMALL.decode(genotype)["operation"] == "skip":
            raise RuntimeError("no gradient")
        return math.nan if genotype[0] == 1 else small_quality(genotype)

    history = search(small(quality=quality), engine, 14, seed=0)
    assert len(history) == 14
    failed = [each for each in history if each.failed]
    assert failed
    assert {each.failure for each in failed} <= {
        "RuntimeError: no gradient",
        "the quality is not a number",
    }


@every_engine
@pytest.mark.parametrize("quality", [lambda g: 0.5, lambda g: math.nan], ids=["constant", "nan"])
def test_scores_that_say_nothing_do_not_stop_a_search(engine, quality):
    assert len(search(small(quality=quality), engine, 10, seed=0)) == 10


@every_engine
def test_a_space_with_one_member_is_one_evaluation(engine):
    space = Space([Choice("width", (8,))])
    problem = Problem(space, lambda g: 0.5, lambda g: 0.0)
    assert search(problem, engine, 10) == [Evaluation((0,), 0.5, 0.0)]


@pytest.mark.parametrize("name", ["random", "front_search", "front_search, batches", "nsga2"])
def test_a_small_space_is_evaluated_to_its_end(name):
    space = Space([Choice("a", (1, 2, 3)), Choice("b", (1, 2, 3, 4))])
    problem = Problem(space, lambda g: float(g[0]), lambda g: float(sum(g)))
    assert len(search(problem, ENGINES[name], 100)) == 12


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_front_search_leaves_what_costs_infinitely_much_to_the_last():
    def cost(genotype):
        return math.inf if genotype[0] == 1 else small_cost(genotype)

    history = search(small(cost=cost), partial(front_search, first=6), 30, seed=0)
    assert len(history) == 30
    assert sum(math.isinf(each.cost) for each in history) <= 6


@pytest.mark.parametrize("engine", [front_search, partial(front_search, batch=5)])
def test_front_search_beats_random_search_on_a_space_too_large_to_list(engine):
    gains = []
    for seed in range(2):
        problem = large(seed)
        ours = search(problem, engine, 45, seed=seed)
        chance = search(problem, random_search, 45, seed=seed)
        both = [*ours, *chance]
        gains.append(hypervolume_share(ours, both) - hypervolume_share(chance, both))
    assert min(gains) > 0


def test_front_search_finds_the_few_affordable_genotypes_of_a_large_space():
    problem = large(0, budget=12)
    history = search(problem, front_search, 30, seed=0)
    assert len(history) == 30
    assert max(each.cost for each in history) <= 12


def test_linas_beats_random_search_with_half_the_evaluations():
    engine = partial(linas, population=15, generations=10)
    gains = []
    for seed in range(2):
        problem = large(seed)
        half, chance = search(problem, engine, 45, seed=seed), search(problem, random_search, 90)
        both = [*half, *chance]
        gains.append(hypervolume_share(half, both) - hypervolume_share(chance, both))
    assert min(gains) > 0


def test_linas_can_predict_costs_as_its_paper_does():
    engine = partial(linas, population=6, generations=3, exact_costs=False)
    assert len(search(small(), engine, 15)) == 15


def test_reinforce_learns_which_option_is_right():
    problem = Problem(LARGE, lambda g: float(sum(index == 2 for index in g)), lambda g: 1.0)
    history = search(problem, reinforce, 300, seed=0)
    late, early = history[-50:], history[:50]
    assert np.mean([e.quality for e in late]) > np.mean([e.quality for e in early]) + 1


def test_evolution_needs_two():
    with pytest.raises(InputError, match="at least two, got 1"):
        search(small(), partial(nsga2, population=1), 5)


SCRIPT = """
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Space
space = Space([Choice(f"layer {at}", ("a", "b", "c")) for at in range(11)])
problem = Problem(space, lambda g: float(sum(g[::2])), lambda g: float(sum(g)))
print([each.genotype for each in search(problem, front_search, 30, seed=5)])
"""


def test_one_seed_gives_one_history_in_every_process(capsys):
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exec(SCRIPT, {})
    assert capsys.readouterr().out == printed
    assert len(printed) > 100
