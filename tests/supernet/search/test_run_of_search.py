import math

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.search.drawing import Drawing, cheapest
from pointsman.supernet.search.failures import breaking_options
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Space

SPACE = Space([Choice("a", (0, 1, 2)), Choice("b", (0, 1)), Choice("c", (0, 1), when=("b", (1,)))])
PROBLEM = Problem(SPACE, lambda g: float(sum(g)), lambda g: float(g[0]), budget=1)


def test_what_an_engine_asks_beyond_the_budget_is_answered_but_not_evaluated():
    told = []

    def engine(problem, seed):
        told.extend((yield [(2, 0, 0), (1, 0, 0)]))
        told.extend((yield [(0, 0, 0)]))

    history = search(PROBLEM, engine, 5)
    assert [each.genotype for each in history] == [(1, 0, 0), (0, 0, 0)]
    assert [each.failure for each in told] == ["beyond the budget", "", ""]


def test_genotypes_that_are_one_network_are_one_evaluation():
    def engine(problem, seed):
        yield [(0, 0, 1), (0, 0, 0)]

    assert [each.genotype for each in search(PROBLEM, engine, 5)] == [(0, 0, 0)]


def test_an_engine_that_only_repeats_itself_is_stopped():
    def engine(problem, seed):
        while True:
            yield [(0, 0, 0)]

    assert len(search(PROBLEM, engine, 5)) == 1


def test_a_search_evaluates_something():
    with pytest.raises(InputError, match="at least one genotype, got 0"):
        search(PROBLEM, lambda problem, seed: iter(()), 0)


def test_drawing_never_repeats_and_ends():
    drawing = Drawing(PROBLEM, np.random.default_rng(0))
    drawing.take([(0, 0, 0)])
    drawn = drawing.draw(100)
    assert len(drawn) == len(set(drawn)) == 5  # of 2 x 3 affordable ones
    assert (0, 0, 0) not in drawn
    assert drawing.draw(1) == []


LARGE = Space([Choice(f"{at}", tuple(range(6))) for at in range(9)])


def test_drawing_finds_what_is_affordable_in_a_large_space_where_little_is():
    problem = Problem(LARGE, lambda g: 0.0, lambda g: float(sum(g)), budget=2)
    drawn = Drawing(problem, np.random.default_rng(0)).draw(30)
    assert len(set(drawn)) == 30
    assert max(sum(genotype) for genotype in drawn) <= 2


def test_the_cheapest_of_a_large_space_is_found_by_descent():
    problem = Problem(LARGE, lambda g: 0.0, lambda g: 7.0 + sum(g), budget=6)
    assert cheapest(problem) == (0,) * 9
    with pytest.raises(UnreachableError, match="at most 6 MFLOPs, the cheapest found costs 7"):
        Drawing(problem, np.random.default_rng(0))


def test_the_front_has_one_of_equals_and_no_failure():
    points = [(0, 0.5, 2.0), (1, 0.5, 2.0), (2, 0.4, 3.0), (3, 0.9, 4.0), (4, math.nan, 1.0)]
    evaluations = [Evaluation((at,), quality, cost) for at, quality, cost in points]
    assert [each.genotype for each in front(evaluations)] == [(0,), (3,)]


def test_an_option_with_which_everything_failed_is_named():
    ran = [Evaluation(g, 1.0, 0.0) for g in ((0, 0, 0), (2, 1, 0), (0, 1, 1))]
    broke = [Evaluation(g, math.nan, 0.0, "broke") for g in ((1, 0, 0), (1, 1, 1), (2, 0, 0))]
    assert breaking_options(SPACE, [*ran, *broke]) == [("a", 1)]
    assert breaking_options(SPACE, ran) == []
