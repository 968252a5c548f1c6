import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from pointsman.errors import InputError
from pointsman.supernet.search.expected_gain import expected_gain
from pointsman.supernet.search.hypervolume import hypervolume, hypervolume_share
from pointsman.supernet.search.problem import Evaluation, front


def evaluations(*points):
    return [Evaluation((at,), quality, cost) for at, (cost, quality) in enumerate(points)]


def test_the_area_of_a_front_of_two_steps():
    found = evaluations((1, 0.5), (2, 0.8), (3, 0.7), (1, math.nan), (9, 1.0))
    assert hypervolume(found, cost=4, quality=0) == pytest.approx(3 * 0.5 + 2 * 0.3)


def test_area_agrees_with_counting_points():
    rng = np.random.default_rng(0)
    found = evaluations(*rng.random((12, 2)))
    at = rng.random((200_000, 2))
    won = np.zeros(len(at), dtype=bool)
    for each in found:
        won |= (at[:, 0] >= each.cost) & (at[:, 1] <= each.quality)
    assert hypervolume(found, cost=1, quality=0) == pytest.approx(won.mean(), abs=0.005)


def test_the_truth_has_a_share_of_one_and_a_part_of_it_less():
    truth = evaluations((1, 0.5), (2, 0.8), (3, 0.9), (3, 0.1))
    assert hypervolume_share(truth, truth) == pytest.approx(1)
    assert 0 < hypervolume_share(truth[:1], truth) < 1
    assert hypervolume_share([], truth) == 0


def test_a_truth_without_differences_is_refused():
    with pytest.raises(InputError, match="different costs and qualities"):
        hypervolume_share([], evaluations((1, 0.5), (2, 0.5)))
    with pytest.raises(InputError, match="got no evaluation"):
        hypervolume_share([], evaluations((1, math.nan)))


def test_the_expected_gain_is_the_mean_growth_of_the_hypervolume():
    known = evaluations((1, 0.3), (2, 0.5), (3, 0.6))
    steps = np.array([(each.cost, each.quality) for each in front(known)])
    mean, spread = np.array([0.35, 0.55, 0.2, 0.9]), np.array([0.2, 0.1, 0.1, 0.3])
    cost = np.array([0.5, 2.5, 1.5, 5.0])
    gains = expected_gain(mean, spread, cost, steps, cost=4, quality=0.1)
    before = hypervolume(known, cost=4, quality=0.1)
    for at in range(4):

        def growth(quality, at=at):
            grown = [*known, Evaluation((9,), quality, cost[at])]
            after = hypervolume(grown, cost=4, quality=0.1)
            return (after - before) * norm.pdf(quality, mean[at], spread[at])

        expected, _ = quad(growth, -1, 3, limit=400, points=[0.1, 0.3, 0.5, 0.6])
        assert gains[at] == pytest.approx(expected, abs=1e-5)


def test_without_a_front_everything_above_the_reference_is_gain():
    gains = expected_gain(
        np.array([1.0]), np.array([1e-9]), np.array([1.0]), np.zeros((0, 2)), cost=3, quality=0
    )
    assert gains == pytest.approx([2.0])
