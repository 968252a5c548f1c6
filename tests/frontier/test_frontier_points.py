"""Outcomes refuse bad data; pareto, hull, mixing and hypervolume agree with brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import InputError, UnitError, UnreachableError
from pointsman.frontier import Frontier, Outcomes, Point

points_lists = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=8)

calm = settings(max_examples=60, deadline=None)  # a busy machine is no failure


def outcomes(settings=3, inputs=5, seed=0, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "knobs": tuple(f"k{s}" for s in range(settings)),
        "quality": rng.integers(0, 2, (settings, inputs)),
        "cost": rng.random((settings, inputs)),
        "reference_quality": np.ones(inputs),
        "reference_cost": np.full(inputs, 2.0),
        "unit": "MFLOPs",
    }
    return Outcomes(**(values | changes))


def frontier(pairs):
    """A frontier from (cost, quality) pairs in eighths; the knob is the place in the list."""
    return Frontier("f", tuple(Point(k, q / 8, c / 8) for k, (c, q) in enumerate(pairs)), "MFLOPs")


def brute_quality_at(points, cost):
    best = max((p.quality for p in points if p.cost <= cost), default=-np.inf)
    for a, b in itertools.permutations(points, 2):
        if a.cost <= cost <= b.cost and a.cost < b.cost:
            share = (cost - a.cost) / (b.cost - a.cost)
            best = max(best, a.quality + share * (b.quality - a.quality))
    return best


def test_drops_are_reference_minus_setting():
    given_ = outcomes(2, 3, quality=[[1, 0, 1], [0, 0, 1]], reference_quality=[1, 1, 0])
    np.testing.assert_array_equal(given_.drops(), [[0, 1, -1], [1, 1, -1]])


def test_take_choose_and_setting_select_inputs_and_settings():
    full = outcomes(3, 5)
    np.testing.assert_array_equal(full.take([4, 1]).quality, full.quality[:, [4, 1]])
    mask = np.array([True, False, True, False, False])
    np.testing.assert_array_equal(full.take(mask).reference_cost, full.reference_cost[mask])
    assert len(full.take(mask)) == 2
    chosen = full.choose(["k2", "k0"])
    assert chosen.knobs == ("k2", "k0")
    np.testing.assert_array_equal(chosen.cost, full.cost[[2, 0]])
    assert full.setting("k1") == 1
    with pytest.raises(InputError, match="no setting has the knob 'k9'"):
        full.choose(["k9"])
    with pytest.raises(InputError, match="distinct"):
        full.choose(["k1", "k1"])


def test_outcomes_cannot_be_written_to_and_leave_the_given_array_alone():
    quality = np.zeros((1, 2))
    made = outcomes(1, 2, quality=quality)
    with pytest.raises(ValueError, match="read-only"):
        made.quality[0, 0] = 1
    quality[0, 0] = 1  # the caller's own array stays writeable


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": np.full((3, 5), 1.5)}, r"quality must be within \[0, 1\], got 1.5"),
        ({"quality": np.full((3, 5), np.nan)}, "quality must be within"),
        ({"reference_quality": np.full(5, -0.1)}, "reference_quality must be within"),
        ({"cost": np.full((3, 5), -1.0)}, "cost must be finite and not negative"),
        ({"cost": np.full((3, 5), np.inf)}, "cost must be finite"),
        ({"cost": np.zeros((3, 4))}, r"cost must have shape \(3, 5\)"),
        ({"reference_cost": np.zeros(4)}, "reference_cost must have shape"),
        ({"knobs": ("a", "b")}, "knobs must have shape"),
        ({"knobs": ("a", "b", "a")}, "'a' comes twice"),
        ({"quality": np.zeros(5)}, r"quality must be \(settings, inputs\)"),
        ({"quality": np.zeros((3, 0))}, r"quality must be \(settings, inputs\)"),
        ({"quality": [["x"] * 5] * 3}, "quality must be an array of numbers"),
    ],
)
def test_outcomes_refuse_bad_data(changes, words):
    with pytest.raises(InputError, match=words):
        outcomes(**changes)


def test_join_puts_settings_of_the_same_inputs_side_by_side():
    one, other = outcomes(2, 5, seed=1), outcomes(2, 5, seed=2, knobs=("x", "y"))
    joined = Outcomes.join([one, other])
    assert joined.knobs == ("k0", "k1", "x", "y")
    np.testing.assert_array_equal(joined.quality, np.vstack([one.quality, other.quality]))
    with pytest.raises(UnitError, match="'MFLOPs' and 'ms'"):
        Outcomes.join([one, outcomes(2, 5, knobs=("x", "y"), unit="ms")])
    with pytest.raises(InputError, match="same inputs"):
        Outcomes.join([one, outcomes(2, 5, knobs=("x", "y"), reference_quality=np.zeros(5))])
    with pytest.raises(InputError, match="same inputs"):
        Outcomes.join([one, outcomes(2, 4, knobs=("x", "y"))])
    with pytest.raises(InputError, match="distinct"):
        Outcomes.join([one, one])
    with pytest.raises(InputError, match="at least one"):
        Outcomes.join([])


def test_from_outcomes_takes_means_and_keeps_the_outcomes():
    given_ = outcomes(2, 4)
    made = Frontier.from_outcomes("way", given_)
    assert made.outcomes is given_
    assert made.unit == "MFLOPs"
    assert made.reference == Point("reference", 1.0, 2.0)
    assert [p.knob for p in made.points] == ["k0", "k1"]
    np.testing.assert_allclose([p.cost for p in made.points], given_.cost.mean(axis=1))
    np.testing.assert_allclose([p.quality for p in made.points], given_.quality.mean(axis=1))


@given(points_lists)
@calm
def test_pareto_keeps_just_the_points_that_no_other_dominates(pairs):
    whole = frontier(pairs)

    def dominated(p):
        return any(
            o.cost <= p.cost
            and o.quality >= p.quality
            and (o.cost, o.quality) != (p.cost, p.quality)
            for o in whole.points
        )

    free = [p for p in whole.points if not dominated(p)]
    first = {}
    for p in free:
        first.setdefault((p.cost, p.quality), p)
    assert whole.pareto().points == tuple(sorted(first.values(), key=lambda p: p.cost))


@given(points_lists, st.integers(0, 64))
@calm
def test_hull_reaches_what_the_best_pair_of_points_reaches(pairs, at):
    whole, cost = frontier(pairs), at / 64
    if cost < min(p.cost for p in whole.points):
        with pytest.raises(InputError, match="cheapest point"):
            whole.quality_at(cost)
        with pytest.raises(InputError, match="cheapest point"):
            whole.mix(cost)
        return
    assert whole.quality_at(cost) == pytest.approx(brute_quality_at(whole.points, cost), abs=1e-12)


@given(points_lists)
@calm
def test_hull_corners_are_concave_rising_and_needed(pairs):
    corners = frontier(pairs).hull().points
    for a, b in itertools.pairwise(corners):
        assert a.cost < b.cost
        assert a.quality < b.quality
    for p in corners[1:]:  # without a corner, its cost buys less
        rest = [q for q in corners if q is not p]
        assert brute_quality_at(rest, p.cost) < p.quality


@given(points_lists, st.integers(0, 64))
@calm
def test_mix_spends_the_cost_asked_for_and_reaches_the_hull(pairs, at):
    whole = frontier(pairs)
    corners = whole.hull().points
    cost = min(max(at / 64, corners[0].cost), corners[-1].cost)
    shares = whole.mix(cost)
    assert all(share > 0 for _, share in shares)
    assert sum(share for _, share in shares) == pytest.approx(1)
    assert sum(whole.points[k].cost * s for k, s in shares) == pytest.approx(cost)
    assert sum(whole.points[k].quality * s for k, s in shares) == pytest.approx(
        whole.quality_at(cost)
    )


@given(points_lists, st.integers(0, 64))
@calm
def test_cost_at_inverts_quality_at(pairs, at):
    whole, quality = frontier(pairs), at / 64
    best = max(p.quality for p in whole.points)
    if quality > best:
        with pytest.raises(UnreachableError, match="at most"):
            whole.cost_at(quality)
        return
    cost = whole.cost_at(quality)
    assert whole.quality_at(cost) >= quality - 1e-12
    if cost > whole.hull().points[0].cost:  # and nothing cheaper does
        assert whole.quality_at(cost - 1e-6) < quality


def test_beyond_the_dearest_corner_the_best_setting_stays():
    whole = frontier([(1, 2), (4, 6)])
    assert whole.mix(9.0) == [(1, 1.0)]
    assert whole.quality_at(np.inf) == 6 / 8
    with pytest.raises(InputError, match="cheapest"):
        whole.mix(float("nan"))
    with pytest.raises(InputError, match="number"):
        whole.cost_at(float("nan"))


@given(points_lists, st.integers(0, 8), st.integers(0, 8))
@calm
def test_hypervolume_counts_the_dominated_cells(pairs, worst_quality, worst_cost):
    cells = sum(
        any(c <= x and q >= y + 1 for c, q in pairs)
        for x in range(worst_cost)
        for y in range(worst_quality, 9)
    )
    area = frontier(pairs).hypervolume(worst_quality=worst_quality / 8, worst_cost=worst_cost / 8)
    assert area == pytest.approx(cells / 64)


def test_a_frontier_refuses_no_points_and_points_that_are_not_finite():
    with pytest.raises(InputError, match="at least one point"):
        Frontier("empty", (), "ms")
    with pytest.raises(InputError, match="finite"):
        Frontier("odd", (Point("a", np.nan, 1.0),), "ms")


def test_pareto_and_hull_keep_all_outcomes_for_the_pick():
    made = Frontier.from_outcomes("way", outcomes(3, 5))
    assert made.pareto().outcomes is made.outcomes
    assert made.hull().outcomes is made.outcomes


def test_pick_needs_outcomes():
    with pytest.raises(InputError, match="from_outcomes"):
        frontier([(1, 1)]).pick(0.01)
