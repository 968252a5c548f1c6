"""Published metrics against values worked out by hand."""

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.frontier import (
    Frontier,
    Point,
    aiq,
    apgr,
    cpt,
    deferral_area,
    deferral_curve,
    pgr,
)

# weak 0.6, strong 0.8; the curve dips below the weak model, then goes above the strong one
SHARE = [0.25, 0.5, 0.75]
QUALITY = [0.58, 0.76, 0.84]


def line(*pairs):
    return Frontier("f", tuple(Point(f"{c}", q, c) for c, q in pairs), "US$")


def test_pgr_is_the_share_of_the_gap():
    assert pgr(0.75, weak=0.6, strong=0.8) == pytest.approx(0.75)
    assert pgr(0.84, weak=0.6, strong=0.8) == pytest.approx(1.2)
    with pytest.raises(InputError, match="no gap"):
        pgr(0.7, weak=0.8, strong=0.8)


def test_apgr_of_a_hand_computed_curve():
    # gaps recovered at 0, 1/4, 1/2, 3/4, 1: 0, -0.1, 0.8, 1.2, 1 -> (0/2 - 0.1 + 0.8 + 1.2 + 1/2)/4
    assert apgr(SHARE, QUALITY, weak=0.6, strong=0.8) == pytest.approx(0.6)
    order = [2, 0, 1]
    shuffled = apgr(np.array(SHARE)[order], np.array(QUALITY)[order], weak=0.6, strong=0.8)
    assert shuffled == pytest.approx(0.6)


def test_apgr_of_chance_is_half_and_ends_are_the_models_themselves():
    assert apgr([], [], weak=0.6, strong=0.8) == pytest.approx(0.5)
    assert apgr([0, 0.3, 1], [0.6, 0.66, 0.8], weak=0.6, strong=0.8) == pytest.approx(0.5)
    # equal shares are averaged
    assert apgr([0.5, 0.5], [0.6, 0.8], weak=0.6, strong=0.8) == pytest.approx(0.5)


def test_cpt_is_the_first_crossing_even_after_a_dip():
    # half the gap is 0.70: between (0.25, 0.58) and (0.5, 0.76) at 0.25 + 0.25 * 12/18
    assert cpt(SHARE, QUALITY, 0.5, weak=0.6, strong=0.8) == pytest.approx(0.25 + 0.25 * 12 / 18)
    assert cpt(SHARE, QUALITY, 0.8, weak=0.6, strong=0.8) == pytest.approx(0.5)
    assert cpt(SHARE, QUALITY, 0.0, weak=0.6, strong=0.8) == 0.0
    assert cpt([], [], 0.8, weak=0.6, strong=0.8) == pytest.approx(0.8)
    assert cpt([], [], 1.0, weak=0.1 + 0.2, strong=0.9) == pytest.approx(1.0)
    # up to 0.84 at 0.75, down to 0.78, back up: the first of three crossings of 0.8 counts
    wavy = cpt([0.5, 0.75, 0.9], [0.76, 0.84, 0.78], 1.0, weak=0.6, strong=0.8)
    assert wavy == pytest.approx(0.625)


def test_cpt_says_when_the_curve_recovers_less():
    with pytest.raises(UnreachableError, match=r"at most 1\.2 of the gap"):
        cpt(SHARE, QUALITY, 1.3, weak=0.6, strong=0.8)


@pytest.mark.parametrize(
    ("share", "quality"), [([0.5], [0.5, 0.6]), ([1.5], [0.5]), ([0.5], [np.nan]), ([[0.5]], [[1]])]
)
def test_curves_that_are_none_are_refused(share, quality):
    with pytest.raises(InputError, match="share"):
        apgr(share, quality, weak=0.6, strong=0.8)


def test_aiq_is_the_mean_height_of_the_hull():
    # the point (3, 0.5) lies under the line from (1, 0.4) to (5, 0.8)
    front = line((1.0, 0.4), (3.0, 0.5), (5.0, 0.8))
    assert aiq(front) == pytest.approx(0.6)
    # flat beyond the dearest corner: (4 * 0.6 + 5 * 0.8) / 9
    assert aiq(front, max_cost=10.0) == pytest.approx((4 * 0.6 + 5 * 0.8) / 9)
    # below the cheapest point nothing answers: (1 * 0 + 4 * 0.6) / 5, or `below`
    assert aiq(front, min_cost=0.0) == pytest.approx(2.4 / 5)
    assert aiq(front, min_cost=0.0, below=0.4) == pytest.approx(2.8 / 5)
    # a range inside: from 2 (0.5) to 4 (0.7)
    assert aiq(front, min_cost=2.0, max_cost=4.0) == pytest.approx(0.6)
    assert aiq(front, min_cost=0.0, max_cost=0.5, below=0.1) == pytest.approx(0.1)
    assert aiq(front, min_cost=6.0, max_cost=7.0) == pytest.approx(0.8)


def test_aiq_default_range_ends_at_the_dearest_point_even_when_it_is_no_corner():
    assert aiq(line((1.0, 0.4), (2.0, 0.8), (3.0, 0.7))) == pytest.approx((0.6 + 0.8) / 2)


def test_aiq_refuses_an_empty_range():
    with pytest.raises(InputError, match="range of cost"):
        aiq(line((1.0, 0.4)))
    with pytest.raises(InputError, match="range of cost"):
        aiq(line((1.0, 0.4)), min_cost=2.0, max_cost=1.0)


def test_deferral_curve_and_area_by_hand():
    weak, strong = [1, 0, 0, 1], [1, 1, 0, 0]
    # by descending score: input 1 (+1), 2 (0), 0 (0), 3 (-1) from a start of 0.5
    share, quality = deferral_curve([2.0, 4.0, 3.0, 1.0], weak, strong)
    np.testing.assert_allclose(share, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quality, [0.5, 0.75, 0.75, 0.75, 0.5])
    assert deferral_area([2.0, 4.0, 3.0, 1.0], weak, strong) == pytest.approx(0.6875)


def test_deferral_area_with_ties_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(3)
    scores, weak, strong = rng.integers(0, 3, 40), rng.random(40), rng.random(40)
    area = deferral_area(scores, weak, strong)
    order = rng.permutation(40)
    assert deferral_area(scores[order], weak[order], strong[order]) == pytest.approx(area)
    # a score that knows nothing: the straight line between the two models
    flat = deferral_area(np.zeros(40), weak, strong)
    assert flat == pytest.approx((weak.mean() + strong.mean()) / 2)


def test_deferral_curve_feeds_apgr():
    weak, strong = np.array([1, 0, 0, 1]), np.array([1, 1, 1, 1])
    share, quality = deferral_curve([1, 4, 3, 2], weak, strong)
    # the gap of 1/2 is closed after half of the inputs: mean gap recovered 0.75
    assert apgr(share, quality, weak=weak.mean(), strong=strong.mean()) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "columns", [([], [], []), ([1.0], [1.0, 0.0], [1.0]), ([np.nan], [1.0], [1.0])]
)
def test_deferral_refuses_bad_columns(columns):
    with pytest.raises(InputError, match="scores and qualities"):
        deferral_area(*columns)
