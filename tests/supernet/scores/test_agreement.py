import math

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.scores import partial_agreement, rank_agreement


def test_equal_and_opposite_orders() -> None:
    same = rank_agreement([1, 2, 3, 9], [0.1, 0.2, 0.3, 0.4])
    assert same.kendall == pytest.approx(1.0)
    assert same.spearman == pytest.approx(1.0)
    assert rank_agreement([1, 2, 3], [3, 2, 1]).kendall == pytest.approx(-1.0)
    assert "Kendall +1.00" in str(same)


def test_ties_are_allowed_for() -> None:
    # Of six pairs four agree, one is tied in either list: 4 / sqrt(5 x 5) with one tie each.
    found = rank_agreement([1, 1, 2, 3], [1, 2, 3, 3])
    assert found.kendall == pytest.approx(4 / 5)


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    found = rank_agreement([1, math.nan, 2, math.inf, 3], [1, 2, 3, 4, 5])
    assert (found.count, found.dropped, found.kendall) == (3, 2, pytest.approx(1.0))
    assert "2 without a value" in str(found)


def test_a_constant_list_ranks_nothing() -> None:
    found = rank_agreement([1, 1, 1], [1, 2, 3], resamples=10)
    assert math.isnan(found.kendall)
    assert math.isnan(found.spearman)


def test_the_bootstrap_interval_holds_the_value_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    guess = truth + rng.normal(size=60)
    found = rank_agreement(guess, truth, resamples=200)
    assert found.low < found.spearman < found.high
    assert found.low > 0
    assert found == rank_agreement(guess, truth, resamples=200)


def test_what_a_score_knows_beyond_a_third_value() -> None:
    rng = np.random.default_rng(0)
    size, rest = rng.normal(size=(2, 400))
    truth = size + rest
    assert partial_agreement(size + 0.01 * rest, truth, size) > 0.3
    assert abs(partial_agreement(size + rng.normal(size=400), truth, size)) < 0.15
    assert math.isnan(partial_agreement(size, truth, size))


def test_one_pair_or_unequal_lists_are_refused() -> None:
    with pytest.raises(InputError, match="got 1 with finite values and 1 without"):
        rank_agreement([1, math.nan], [1, 2])
    with pytest.raises(InputError, match="each guess has its truth"):
        rank_agreement([1, 2], [1, 2, 3])
