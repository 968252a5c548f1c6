"""Rules, beliefs, windows and learned deferral."""

import math

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.frontier import deferral_area
from pointsman.pool.deferral import Beliefs, Bounds, LearnedDeferral, window_bounds
from pointsman.pool.deferral.rules import thresholds_between


def test_bounds_include_the_low_and_exclude_the_high_end() -> None:
    score = np.array([-np.inf, 0.1, 0.2, 0.3])
    assert Bounds(0.1, 0.3).inside(score).tolist() == [False, True, True, False]
    assert Bounds(None, 0.1).inside(score).tolist() == [True, False, False, False]
    assert Bounds(None, None).inside(score).all()


def test_thresholds_lie_between_scores_and_reach_from_never_to_always() -> None:
    score = np.array([0.1, 0.2, 0.2, 0.5, 0.9, -np.inf])
    found = [int(bounds.inside(score).sum()) for bounds in thresholds_between(score, 10)]
    assert found == [1, 2, 4, 5, 6]
    assert len(thresholds_between(np.random.default_rng(0).random(5000), 24)) == 26


def test_windows_hold_twice_their_width() -> None:
    scores = np.random.default_rng(0).random(2001)
    low, high = window_bounds(scores, 0.4, 0.1)
    assert ((scores >= low) & (scores <= high)).mean() == pytest.approx(0.2, abs=1e-3)
    assert window_bounds(scores, 0.2, 0) == (math.inf, math.inf)
    assert window_bounds(scores, 0.05, 0.1)[0] == -math.inf
    assert window_bounds(scores, 0.95, 0.1)[1] == math.inf


def joint(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models whose luck goes together; the signal of each is its chance with noise."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 1))
    chance = np.clip(0.5 + 0.2 * shared + 0.1 * rng.normal(size=(n, 2)), 0.02, 0.98)
    right = (rng.random((n, 2)) < chance).astype(float)
    return right, np.full((n, 2), 0.5), chance + 0.05 * rng.normal(size=(n, 2))


def test_the_signal_of_one_answer_tells_about_the_other_model_too() -> None:
    right, predicted, signal = joint(20_000)
    beliefs = Beliefs().fit(right, predicted, signal)
    fresh, predicted, signal = joint(5000, 1)
    news = beliefs.evidence(0, signal[:, 0], predicted)
    expected = beliefs.expected([0], [news], predicted)
    doubtful = news < np.quantile(news, 0.2)
    for model in (0, 1):
        assert expected[doubtful, model].mean() == pytest.approx(
            fresh[doubtful, model].mean(), abs=0.05
        )
    assert expected[doubtful, 1].mean() < 0.4


def test_what_an_answer_will_move_is_known_beforehand() -> None:
    right, predicted, signal = joint(20_000)
    beliefs = Beliefs().fit(right, predicted, signal)
    slope = beliefs.moves(()).slope
    news = beliefs.evidence(0, signal[:, 0], predicted)
    moved = beliefs.expected([0], [news], predicted) - predicted
    assert moved.std(axis=0) == pytest.approx(np.abs(slope[0]), rel=0.05)
    # once model 0 has answered, model 1's signal is less of a surprise for model 0
    assert abs(beliefs.moves((0,)).slope[1, 0]) < abs(slope[1, 0])
    assert not beliefs.moves((0,)).slope[0].any()


def test_a_signal_that_is_never_known_moves_nothing() -> None:
    right, predicted, signal = joint(300)
    signal[:, 1] = np.nan
    beliefs = Beliefs().fit(right, predicted, signal)
    assert not beliefs.moves(()).slope[1].any()
    assert not beliefs.evidence(1, np.array([0.9]), predicted[:1]).any()
    again = Beliefs.from_state(*beliefs.to_state())
    news = beliefs.evidence(0, signal[:, 0], predicted)
    first, second = (b.expected([0], [news], predicted) for b in (beliefs, again))
    assert (first == second).all()


@pytest.mark.parametrize("target", ["correctness", "probability"])
def test_learned_deferral_beats_confidence_where_the_second_is_a_specialist(target: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, size=4000)

    def classifier(strength: np.ndarray) -> np.ndarray:
        logits = rng.normal(size=(4000, 6))
        logits[np.arange(4000), labels] += strength
        p = np.exp(logits)
        return p / p.sum(axis=1, keepdims=True)

    first = classifier(np.full(4000, 1.5))
    second = classifier(np.where(labels < 3, 5.0, -1.0))  # knows the first three classes only
    train, test = slice(0, 2500), slice(2500, None)
    rule = LearnedDeferral(target).fit(first[train], second[train], labels[train])  # type: ignore[arg-type]
    right = [(p[test].argmax(axis=1) == labels[test]).astype(float) for p in (first, second)]
    learned = deferral_area(rule.score(first[test]), *right)
    confident = deferral_area(-first[test].max(axis=1), *right)
    assert learned > confident + 0.02


def test_the_largest_probability_of_the_second_needs_no_labels() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.dirichlet(np.ones(4), size=(2, 600))
    rule = LearnedDeferral("confidence").fit(first, second, np.zeros(600, dtype=int))
    other = LearnedDeferral("confidence").fit(first, second, np.ones(600, dtype=int))
    assert (rule.score(first) == other.score(first)).all()


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="correctness, probability or confidence, got 'guess'"):
        LearnedDeferral("guess").fit(np.eye(3), np.eye(3), np.arange(3))  # type: ignore[arg-type]
