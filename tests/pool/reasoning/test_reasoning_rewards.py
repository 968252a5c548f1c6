"""Rewards by rule, against values done by hand."""

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.reasoning.rewards import (
    Cheapness,
    answer_reward,
    episode_reward,
    exact_match,
    plan_reward,
    word_recall,
)
from pointsman.pool.reasoning.tags import Breach, Plan


def test_format_counts_before_the_answer_and_the_answer_before_the_cost():
    found = episode_reward(
        [True, True, False, False, False], [1, 0, 0, 1, 1], [1, 1, 1, 1, 0.25], weight=0.6
    )
    assert found.tolist() == pytest.approx([-1, -1, 0, 1, 0.4 + 0.6 * 0.25])
    assert episode_reward([False], [1], [0], weight=0).tolist() == [1]
    with pytest.raises(InputError, match=r"share in \[0, 1\]"):
        episode_reward([False], [1], [0], weight=1.5)


def test_cheapness_lies_between_the_percentiles_of_the_roots():
    cost = np.arange(101.0) ** 2  # roots 0 to 100, percentiles 5 and 95
    found = Cheapness()(cost)
    np.testing.assert_allclose(found, 1 - np.clip((np.arange(101) - 5) / 90, 0, 1))


def test_cheapness_is_a_half_while_all_cost_the_same():
    cheapness = Cheapness()
    assert cheapness([4.0, 4.0]).tolist() == [0.5, 0.5]
    assert cheapness([9.0]).tolist() == [0.0]
    assert cheapness([]).tolist() == []


def test_only_the_last_episodes_are_remembered():
    cheapness = Cheapness(window=4, low=0.0, high=1.0)
    cheapness([1e6, 1e6])
    cheapness([0.0, 1.0, 4.0])
    assert cheapness([9.0]).tolist() == [0.0]  # the dear ones of the start are forgotten
    assert cheapness([1.0]).tolist() == [1.0]


def test_wrong_costs_and_windows_are_refused():
    with pytest.raises(InputError, match="not negative"):
        Cheapness()([-1.0])
    with pytest.raises(InputError, match="not negative"):
        Cheapness()([np.nan])
    with pytest.raises(InputError, match="low < high"):
        Cheapness(low=0.9, high=0.1)


def test_answers_match_whatever_their_dress():
    assert exact_match("The answer is Paris.", ["London", "paris"])
    assert not exact_match("Paris, France", ["Paris"])


def test_a_plan_earns_half_for_the_question_and_half_for_the_base():
    def similarity(first, second):
        return 1.0 if first == second else 0.3

    teacher = Plan("who?", "Text")
    assert plan_reward(Plan("who?", "Text"), teacher, similarity) == 1
    assert plan_reward(Plan("who?", "Table"), teacher, similarity) == 0.5
    assert plan_reward(Plan("where?", "Text"), teacher, similarity) == pytest.approx(0.65)
    assert plan_reward(Breach("x"), teacher, similarity) == 0


def test_recall_counts_words_as_often_as_they_occur():
    assert word_recall("b a a", "a a c b") == 0.75
    assert word_recall("", "a") == 0


def test_short_and_several_references_must_be_met_in_full():
    long = "one two three four five six"
    assert answer_reward("six five four", [long]) == 0.5
    assert answer_reward("one two", ["one two three"]) == 0
    assert answer_reward("three, two and one!", ["one two three"]) == 1
    assert answer_reward("six five four", [long, long + " seven"]) == 0
    assert answer_reward("b", ["a", "b"]) == 1
    assert answer_reward(Breach("x"), ["a"]) == 0
    with pytest.raises(InputError, match="not empty"):
        answer_reward("a", [])
