"""Figures of strategies with bootstrap intervals: definitions, limits, agreement with the core."""

import numpy as np
import pytest

from pointsman.compare.queries.metrics import Bootstrap, corners, height_at
from pointsman.frontier import Frontier, Outcomes, Point, aiq, deferral_curve
from pointsman.frontier import apgr as exact_apgr


def two_models(n=400, seed=0):
    """A weak and a strong model, (2, N) each, and a score that knows a little of who is needed."""
    rng = np.random.default_rng(seed)
    weak = (rng.random(n) < 0.6).astype(float)
    strong = (rng.random(n) < 0.85).astype(float)
    score = (strong - weak) + rng.normal(size=n)
    return np.stack([weak, strong]), np.stack([np.full(n, 1.0), np.full(n, 10.0)]), score


def singles(quality, cost):
    return Outcomes(("a", "b"), quality, cost, quality[1], cost[1], "US$")


def deferring(quality, cost, score, shares):
    """A strategy that sends the share of highest score to the strong model."""
    calls = np.stack([score >= np.quantile(score, 1 - s) if s else score < -np.inf for s in shares])
    found = Outcomes(
        tuple(f"d: {share}" for share in shares),
        np.where(calls, quality[1], quality[0]),
        np.where(calls, cost[1], cost[0]),
        quality[1],
        cost[1],
        "US$",
    )
    return found, calls.astype(float)


def test_a_hull_is_that_of_the_core():
    rng = np.random.default_rng(3)
    for _ in range(50):
        cost, quality = rng.random(12).round(1), rng.random(12).round(1)
        points = [Point(i, q, c) for i, (q, c) in enumerate(zip(quality, cost, strict=True))]
        expected = Frontier("x", tuple(points), "US$").hull().points
        found = corners(cost, quality)
        assert [(cost[at], quality[at]) for at in found] == [(p.cost, p.quality) for p in expected]


def test_height_is_the_quality_of_mixing_two_corners():
    cost, quality = np.array([1.0, 3.0]), np.array([0.5, 0.9])
    assert height_at([1, 2, 3, 9], cost, quality) == pytest.approx([0.5, 0.7, 0.9, 0.9])


def test_aiq_and_apgr_are_those_of_the_core():
    quality, cost, score = two_models()
    shares = np.linspace(0, 1, 401)
    found, calls = deferring(quality, cost, score, shares)
    figures = Bootstrap(singles(quality, cost), 1, resamples=5).figures(found, calls)
    expected = aiq(Frontier.from_outcomes("x", found), min_cost=1.0, max_cost=10.0)
    assert figures["aiq"].value == pytest.approx(expected)
    curve = deferral_curve(score, quality[0], quality[1])
    weak, strong = quality.mean(axis=1)
    exact = exact_apgr(curve.share, curve.quality, weak=weak, strong=strong)
    assert figures["apgr"].value == pytest.approx(exact, abs=0.01)


def test_the_zero_router_gains_nothing_and_recovers_half_on_average():
    quality, cost, _ = two_models()
    alone = singles(quality, cost)
    calls = np.stack([np.zeros(400), np.ones(400)])
    figures = Bootstrap(alone, 1, resamples=20).figures(alone, calls)
    assert figures["gain"].value == pytest.approx(0.0)
    assert figures["apgr"].value == pytest.approx(0.5)
    assert figures["deferral_area"].value == pytest.approx(quality.mean())
    assert figures["cpt50"].value == pytest.approx(0.5)
    assert figures["cpt80"].value == pytest.approx(0.8)
    assert figures["cost_save"].value == pytest.approx(0.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    truth = 0.25  # P(strong right) - P(weak right)
    for seed in range(60):
        quality, cost, _ = two_models(300, seed)
        alone = singles(quality, cost)
        figures = Bootstrap(alone, 1, resamples=200, seed=seed).figures(alone, np.zeros((2, 300)))
        half = figures["aiq"]  # the mean of both qualities
        covered += half.low <= 0.6 + truth / 2 <= half.high
    assert covered >= 51  # 95% of 60 is 57; 51 or fewer happens once in 500 times


def test_what_is_not_defined_is_none():
    quality, cost, _ = two_models()
    same = np.stack([quality[1], quality[1]])
    figures = Bootstrap(singles(same, cost), 1, resamples=5).figures(
        singles(same, cost), np.zeros((2, 400))
    )
    assert figures["apgr"].value is None
    assert figures["cpt50"].to_dict() == {"value": None, "low": None, "high": None}
    flat = np.stack([cost[0], cost[0]])
    figures = Bootstrap(singles(quality, flat), 1, resamples=5).figures(
        singles(quality, flat), np.zeros((2, 400))
    )
    assert figures["aiq"].value is None


def test_more_than_two_models_are_laid_along_the_range_of_cost():
    quality = np.array([[0.0] * 10, [1.0] * 5 + [0.0] * 5, [1.0] * 10])
    cost = np.array([[1.0] * 10, [2.0] * 10, [3.0] * 10])
    alone = Outcomes(("a", "b", "c"), quality, cost, quality[2], cost[2], "US$")
    figures = Bootstrap(alone, 2, resamples=5).figures(alone, np.zeros((3, 10)))
    assert figures["apgr"].value == pytest.approx(0.5)
    assert figures["cpt50"].value == pytest.approx(0.5)
    assert figures["oracle_gap"].value == pytest.approx(0.0)
