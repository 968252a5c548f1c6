"""The log itself: its rules, its parts, and when two queries are the same."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pointsman.errors import InputError
from pointsman.pool.log import Log

NAN = float("nan")


def make(**changes) -> Log:
    fields = {
        "queries": np.array(["one", "two", "three"], dtype=object),
        "models": ("a", "b"),
        "quality": np.array([[1.0, 0.5], [NAN, 1.0], [0.0, 1.0]]),
        "cost": np.array([[1.0, 2.0], [NAN, 4.0], [2.0, NAN]]),
        "latency": np.full((3, 2), 0.5),
        "signals": {"confidence": np.array([[0.1, 0.2], [NAN, 0.4], [0.5, 0.6]])},
        "signal_cost": {"confidence": np.full((3, 2), 0.25)},
        "groups": {"task": np.array(["x", "y", "x"], dtype=object)},
        "vectors": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    return Log(**(fields | changes))


def test_lists_of_texts_and_of_names_will_do():
    log = Log(["one", 2], ["a"], [[1], [0]], [[1], [2]])
    assert log.queries.dtype == object
    assert list(log.queries) == ["one", "2"]
    assert log.models == ("a",)
    assert log.quality.dtype == np.float64
    assert len(log) == 2


def test_cells_cannot_be_changed_neither_through_the_log_nor_through_what_it_was_made_of():
    given = np.ones((2, 1))
    log = Log(["one", "two"], ("a",), given, given)
    given[0, 0] = 0.0
    assert log.quality[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        log.quality[0, 0] = 0.0
    with pytest.raises(FrozenInstanceError):
        log.models = ("b",)


@pytest.mark.parametrize("rows", [[2, 0], np.array([True, False, True])])
def test_some_queries_keep_all_that_belongs_to_them(rows):
    log = make()
    some = log.take(rows)
    at = np.arange(3)[np.asarray(rows)]
    assert list(some.queries) == list(log.queries[at])
    for name in ("quality", "cost", "latency", "vectors"):
        assert_array_equal(getattr(some, name), getattr(log, name)[at])
    assert_array_equal(some.signals["confidence"], log.signals["confidence"][at])
    assert_array_equal(some.signal_cost["confidence"], log.signal_cost["confidence"][at])
    assert_array_equal(some.groups["task"], log.groups["task"][at])


def test_what_a_log_does_not_have_some_of_its_queries_do_not_have_either():
    some = make(latency=None, signals={}, signal_cost={}, groups={}, vectors=None).take([0])
    assert (some.latency, some.vectors) == (None, None)
    assert (some.signals, some.groups) == ({}, {})


def test_a_query_is_complete_where_every_quality_and_every_cost_is_known():
    assert_array_equal(make().complete(), [True, False, False])
    assert_array_equal(make(cost=np.ones((3, 2))).complete(), [True, False, True])


def test_means_are_those_of_the_known_cells():
    log = make()
    assert_array_equal(log.mean_cost(), [1.5, 3.0])
    assert_array_equal(log.mean_quality(), [0.5, 2.5 / 3])
    assert_array_equal(make(cost=np.array([[NAN, 1.0]] * 3)).mean_cost(), [np.inf, 1.0])


def test_a_model_is_found_by_name_and_an_unknown_one_refused():
    assert make().model("b") == 1
    with pytest.raises(InputError, match="there is no model 'c': the log has a, b"):
        make().model("c")


def test_queries_are_the_same_but_for_case_spaces_and_forms_of_one_character():
    queries = [
        "What  is\nthis?",
        "what is this?",
        "What is that?",
        " WHAT IS THIS? ",
        "ﬁne",
        "fine",
    ]
    cells = np.ones((len(queries), 1))
    log = Log(queries, ("a",), cells, cells)
    assert_array_equal(log.identity(), [0, 0, 1, 0, 2, 2])


def test_zero_cost_and_missing_cost_are_different_things():
    log = make(cost=np.array([[0.0, 1.0], [NAN, 1.0], [0.0, 1.0]]))
    assert_array_equal(log.mean_cost(), [0.0, 1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": []}, r"at least one query and one model, got \(0, 2\)"),
        ({"models": ()}, "at least one query and one model"),
        ({"models": ("a", "a")}, "different names, got a, a"),
        ({"quality": np.ones((2, 2))}, r"quality must be .* \(3, 2\), got \(2, 2\)"),
        ({"cost": np.ones((3, 3))}, "cost must be"),
        ({"latency": np.ones(3)}, "latency must be"),
        ({"signals": {"margin": np.ones((3, 1))}}, "margin must be"),
        ({"signal_cost": {"judge": np.ones((1, 2))}}, "judge must be"),
        ({"quality": np.array([[1, 2], [1, 1], [1, 1.5]])}, r"'b' has 2 in query 0 \(2 such"),
        ({"quality": np.array([[1, 1], [-0.1, 1], [1, 1]])}, "'a' has -0.1 in query 1"),
        ({"quality": np.array([[1, 1], [np.inf, 1], [1, 1]])}, "'a' has inf in query 1"),
        ({"cost": np.array([[1, 1], [1, -2], [1, 1]])}, "'b' has -2 in query 1"),
        ({"cost": np.array([[1, 1], [1, np.inf], [1, 1]])}, "'b' has inf in query 1"),
        ({"quality": np.array([[1, NAN]] * 3)}, "model 'b' has no quality in any query"),
        ({"groups": {"user": np.array(["u"], dtype=object)}}, r"group 'user' must be \(3,\)"),
        ({"vectors": np.ones((2, 4), np.float32)}, r"vectors must be \(3, D\), got \(2, 4\)"),
        ({"vectors": np.ones(3, np.float32)}, "vectors must be"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as refused:
        make(**changes)
    assert "\n" not in str(refused.value)
