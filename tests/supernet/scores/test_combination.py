import math

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.scores import ScoreTable, combined_scores
from pointsman.supernet.scores.combination import scaled
from pointsman.supernet.search.problem import Problem
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Choice, Space

SPACE = Space([Choice("network", tuple(range(60)))])
QUALITY = np.random.default_rng(0).normal(size=60)


def table(**scores: object) -> ScoreTable:
    values = {name: list(each) for name, each in scores.items()}
    return ScoreTable(tuple(SPACE.enumerate()), values, {})


def problem(budget: float | None = None) -> Problem:
    return Problem(SPACE, lambda g: float(QUALITY[g[0]]), lambda g: float(g[0]), "index", budget)


NOISE = np.random.default_rng(1).normal(size=(2, 60))


def test_scores_are_scaled_and_missing_ones_have_no_say() -> None:
    raw = np.array([[1.0, 5.0, math.nan], [3.0, 5.0, 2.0], [2.0, 5.0, 4.0], [math.inf, 5.0, 3.0]])
    expected = [[0, 0, 0], [1, 0, 0], [0.5, 0, 1], [0, 0, 0.5]]
    np.testing.assert_allclose(scaled(raw), expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_score_that_tells_the_truth_is_found_even_upside_down(sign: float) -> None:
    scores = table(noise=NOISE[0], told=sign * QUALITY, more=NOISE[1])
    history = search(problem(), combined_scores(scores, explored=12), 15, seed=0)
    assert max(each.quality for each in history) == QUALITY.max()
    assert len({each.genotype for each in history}) == 15


def test_the_same_seed_gives_the_same_history_and_the_pool_is_walked_to_its_end() -> None:
    engine = combined_scores(table(noise=NOISE[0], told=QUALITY), explored=5)
    history = search(problem(), engine, 100, seed=3)
    assert history == search(problem(), engine, 100, seed=3)
    assert len(history) == 60


def test_genotypes_beyond_the_budget_are_not_asked_for() -> None:
    history = search(problem(9.0), combined_scores(table(told=QUALITY)), 100, seed=0)
    assert {each.genotype for each in history} == {(at,) for at in range(10)}


def test_failed_and_constant_qualities_do_not_stop_it() -> None:
    failing = Problem(SPACE, lambda g: math.nan if g[0] % 2 else 1.0, lambda g: 0.0)
    engine = combined_scores(table(noise=NOISE[0], more=NOISE[1]), explored=8)
    assert len(search(failing, engine, 20, seed=0)) == 20
    never = Problem(SPACE, lambda g: math.nan, lambda g: 0.0)
    assert len(search(never, engine, 20, seed=0)) == 20


def test_nothing_to_combine_is_refused() -> None:
    with pytest.raises(InputError, match="explored=0"):
        combined_scores(table(noise=NOISE[0]), explored=0)
    with pytest.raises(InputError, match="0 scores"):
        combined_scores(table())
