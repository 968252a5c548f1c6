"""Mixing by chance lies on straight lines; the oracle bounds every setting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.frontier import Frontier, Outcomes, Point, oracle, random_mixing

calm = settings(max_examples=60, deadline=None)  # a busy machine is no failure


def outcomes(seed, settings=4, inputs=30):
    rng = np.random.default_rng(seed)
    return Outcomes(
        tuple(range(settings)),
        rng.integers(0, 3, (settings, inputs)) / 2,
        rng.integers(1, 6, (settings, inputs)).astype(float),
        rng.integers(0, 2, inputs),
        np.full(inputs, 6.0),
        "MFLOPs",
    )


def test_random_mixing_is_the_segment_between_two_members():
    members = Frontier("ladder", (Point("big", 0.9, 10.0), Point("small", 0.7, 2.0)), "MFLOPs")
    chance = random_mixing(members)
    for share in (0.0, 0.25, 0.5, 1.0):
        cost = 2.0 + share * 8.0
        assert chance.quality_at(cost) == pytest.approx(0.7 + share * 0.2)
    assert dict(chance.mix(4.0)) == pytest.approx({"small": 0.75, "big": 0.25})
    assert [point.knob for point in chance.points] == ["small", "big"]


def test_random_mixing_leaves_out_members_under_the_lines():
    points = (Point("a", 0.5, 1.0), Point("b", 0.55, 2.0), Point("c", 0.9, 3.0))
    assert [p.knob for p in random_mixing(Frontier("ladder", points, "ms")).points] == ["a", "c"]


def test_simulated_mixing_reaches_the_cost_and_quality_said():
    members = Frontier("ladder", (Point("big", 0.9, 10.0), Point("small", 0.7, 2.0)), "MFLOPs")
    knobs, shares = zip(*random_mixing(members).mix(5.0), strict=True)
    drawn = np.random.default_rng(0).choice(len(knobs), size=40_000, p=shares)
    cost = np.array([{"big": 10.0, "small": 2.0}[knob] for knob in knobs])[drawn]
    assert cost.mean() == pytest.approx(5.0, abs=5 * 4 / 200)


@given(st.integers(0, 10_000))
@calm
def test_oracle_takes_the_best_quality_at_the_least_cost(seed):
    given_ = outcomes(seed)
    best = oracle(given_)
    quality, cost = [], []
    for n in range(len(given_)):
        pairs = zip(given_.quality[:, n], given_.cost[:, n], strict=True)
        q, c = min(pairs, key=lambda pair: (-pair[0], pair[1]))
        quality.append(q)
        cost.append(c)
    assert best == Point("oracle", pytest.approx(np.mean(quality)), pytest.approx(np.mean(cost)))


@given(st.integers(0, 10_000))
@calm
def test_oracle_dominates_every_setting(seed):
    given_ = outcomes(seed)
    best = oracle(given_)
    for point in Frontier.from_outcomes("way", given_).points:
        assert best.quality >= point.quality - 1e-12
    ceiling = given_.quality.max(axis=0)  # a setting as good as the oracle everywhere costs no less
    perfect = Outcomes.join(
        [
            given_,
            Outcomes(
                ("perfect",),
                ceiling[None],
                np.full((1, len(given_)), 3.0),
                given_.reference_quality,
                given_.reference_cost,
                given_.unit,
            ),
        ]
    )
    assert oracle(perfect).quality == pytest.approx(best.quality)
    assert oracle(perfect).cost <= 3.0
