"""Recruiting by skill: profiles by hand, draws in proportion, rare models replaced, votes."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.recruit import (
    Recruiter,
    aggregation_tests,
    batches,
    best_aggregator,
    letter_vectors,
    steady_skills,
    vote,
)

SKILLS = [["algebra"], ["algebra", "geometry"], ["biology"], ["biology"]]
QUALITY = np.array([[1, 0, 1], [1, 0, 0.5], [0, 1, 1], [0, 1, np.nan]])


def fitted(**keywords):
    return Recruiter(**keywords).fit(SKILLS, QUALITY)


def test_keywords_named_once_or_too_long_are_dropped():
    samples = [
        ["Algebra", "number  theory", "a very long description indeed"],
        ["algebra", "algebra", "proof"],
        ["number theory", "a very long description indeed", ""],
    ]
    assert steady_skills(samples) == ("algebra", "number theory")
    assert steady_skills(samples, least=1, longest=5) == ("proof",)
    assert steady_skills([]) == ()


def test_profiles_count_right_less_wrong_and_nothing_where_a_model_was_not_asked():
    recruiter = fitted()
    assert recruiter.skills_ == ("algebra", "biology", "geometry")
    assert recruiter.profile_.tolist() == [[2, -2, 1], [-2, 2, -1], [1, 1, 0]]
    # totals 1, -1, 2, shifted by 1 + 1
    assert recruiter.strength_ == pytest.approx(np.array([9, 1, 16]) / 26)


def test_weights_are_local_score_times_strength_over_models_that_are_good_at_it():
    weights = fitted().weights([["algebra"], ["biology"]])
    assert weights[0] == pytest.approx(np.array([2 * 9, 0, 16]) / 34)
    assert weights[1] == pytest.approx(np.array([0, 2 * 1, 16]) / 18)


def test_where_nobody_is_good_the_least_bad_is_likeliest():
    recruiter = Recruiter().fit([["art"]] * 3, np.array([[0, 0], [0, 0], [0, 1]]))
    weights = recruiter.weights([["art"]])
    assert (weights > 0).all()
    assert weights[0, 1] > weights[0, 0]


def test_without_a_skill_all_skills_count_alike():
    recruiter = fitted()
    everything = [list(recruiter.skills_)]
    np.testing.assert_allclose(recruiter.weights([[]]), recruiter.weights(everything))


def test_an_unknown_skill_counts_as_the_nearest_known_one():
    recruiter = fitted()
    np.testing.assert_allclose(
        recruiter.weights([["linear algebra"], ["biologist"]]),
        recruiter.weights([["algebra"], ["biology"]]),
    )
    assert letter_vectors(["algebra"]).shape == (1, 4096)


def test_dense_vectors_of_an_encoder_serve_as_well():
    places = {"algebra": [1, 0], "biology": [0, 1], "geometry": [0.9, 0.1], "cells": [0.1, 0.9]}
    recruiter = fitted(vectors=lambda skills: np.array([places[skill] for skill in skills]))
    np.testing.assert_allclose(recruiter.weights([["cells"]]), recruiter.weights([["biology"]]))


def test_draws_follow_the_weights_and_repeat_with_the_seed():
    recruiter = fitted(rare=0.0, seed=5)
    drawn = recruiter.recruit([["algebra"]] * 20_000)
    shares = np.bincount(drawn.ravel(), minlength=3) / drawn.size
    np.testing.assert_allclose(shares, recruiter.weights([["algebra"]])[0], atol=0.01)
    assert shares[1] == 0
    assert (drawn[:, 0] == drawn[:, 1]).mean() > 0.4  # with replacement
    np.testing.assert_array_equal(drawn, recruiter.recruit([["algebra"]] * 20_000))


def test_rare_models_are_replaced_by_frequent_ones():
    # biology, asked once in a hundred, is all that the second model is drawn for
    asked = [["algebra"]] * 99 + [["biology"]]
    assert (fitted(rare=0.0, seed=2).recruit(asked * 10) == 1).any()
    assert not (fitted(rare=0.05, seed=2).recruit(asked * 10) == 1).any()


def test_if_every_model_is_rare_all_stay():
    recruiter = Recruiter(rare=0.9).fit([["x"]], np.ones((1, 3)))
    assert set(recruiter.recruit([["x"]] * 50).ravel()) == {0, 1, 2}


def test_every_place_is_in_exactly_one_batch():
    recruited = np.array([[0, 0, 2], [2, 1, 0], [2, 2, 2]])
    seen = np.full(recruited.shape, -1)
    models = []
    for batch in batches(recruited):
        models.append(batch.model)
        assert (seen[batch.rows, batch.places] == -1).all()
        seen[batch.rows, batch.places] = batch.model
    assert models == [0, 1, 2]
    np.testing.assert_array_equal(seen, recruited)


def test_the_vote_goes_to_the_most_and_then_to_the_first():
    assert vote(["b", "a", "a"]) == "a"
    assert vote(["b", "a", "c"]) == "b"
    with pytest.raises(InputError, match="at least one answer"):
        vote([])


def test_the_aggregator_is_who_finds_the_right_answer_among_wrong_ones():
    right, wrong = ["r1", "r2", "r3"], [["w", "v"]] * 3
    tests = aggregation_tests(right, wrong)
    pairs = list(zip(tests, right, strict=True))
    assert all(sorted(test) == sorted([good, "w", "v"]) for test, good in pairs)
    assert len({test.index(good) for test, good in pairs}) > 1
    found = {"first": [test[0] for test in tests], "knows": right}
    assert best_aggregator(found, right) == "knows"
    with pytest.raises(InputError, match="each of 3 tests"):
        best_aggregator({"short": ["r1"]}, right)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"\(4, models\), got \(3, 3\)"):
        Recruiter().fit(SKILLS, QUALITY[:3])
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        Recruiter().fit(SKILLS, QUALITY + 1)
    with pytest.raises(InputError, match="none of the 4 queries names a skill"):
        Recruiter().fit([[]] * 4, QUALITY)
    with pytest.raises(InputError, match="places is at least 1"):
        Recruiter(0).fit(SKILLS, QUALITY)
