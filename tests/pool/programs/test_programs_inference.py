"""Programs of texts against sums done by hand; draws against the exact answer."""

import math

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.pool.programs import (
    Call,
    Conditional,
    Table,
    ancestral,
    chain_of_thought,
    consensus,
    effective_size,
    enumerated,
    marginal,
    probabilities,
    rejection,
)

THOUGHTS = {"add": 0.5, "multiply": 0.3, "guess": 0.2}
ANSWERS = {
    ("add",): {"5": 0.9, "6": 0.1},
    ("multiply",): {"6": 1.0},
    ("guess",): {"5": 0.25, "6": 0.25, "7": 0.5},
}
RIGHT = {"5": 0.8, "6": 0.1, "7": 0.1}


def program():
    answers = Conditional(ANSWERS, cost=2.0)
    return chain_of_thought(
        "2 and 3?",
        lambda question: Table(THOUGHTS, cost=1.0),
        lambda question, thought: answers(thought),
        lambda question, thought, answer: Table(
            {"right": RIGHT[answer], "wrong": 1 - RIGHT[answer]}, cost=0.5
        ),
    )


def by_hand(verdict=None):
    joint = {}
    for thought, p in THOUGHTS.items():
        for answer, q in ANSWERS[thought,].items():
            joint[answer] = joint.get(answer, 0) + p * q * (RIGHT[answer] if verdict else 1)
    return {answer: p / sum(joint.values()) for answer, p in joint.items()}


@pytest.mark.parametrize("verdict", [None, "right"])
def test_enumeration_is_the_sum_over_thoughts(verdict):
    traces = enumerated(program(), given={"verdict": verdict} if verdict else {})
    assert marginal(traces) == pytest.approx(by_hand(verdict))


def test_enumerated_runs_are_all_different_and_sum_to_one():
    traces = enumerated(program())
    assert len({tuple(trace.values.items()) for trace in traces}) == len(traces) == 12
    assert math.fsum(math.exp(trace.log_weight) for trace in traces) == pytest.approx(1)


@pytest.mark.parametrize("verdict", [None, "right"])
def test_weighed_draws_come_near_the_exact_answer(verdict):
    traces = ancestral(program(), 20_000, seed=3, given={"verdict": verdict} if verdict else {})
    found, exact = marginal(traces), by_hand(verdict)
    assert sum(abs(found[answer] - exact[answer]) for answer in exact) / 2 < 0.015


def test_rejection_keeps_what_the_verifier_would_and_pays_for_all():
    kept, spent = rejection(program(), 4000, seed=1, given={"verdict": "right"})
    found, exact = marginal(kept), by_hand("right")
    assert sum(abs(found[answer] - exact[answer]) for answer in exact) / 2 < 0.03
    assert spent > 1.5 * sum(trace.cost for trace in kept)
    assert kept[0].cost == 3.5


def test_rejection_gives_up_on_what_never_happens():
    with pytest.raises(UnreachableError, match="0 of 3 runs were kept in 50 attempts"):
        rejection(program(), 3, given={"verdict": "maybe"}, attempts=50)


def test_the_vote_groups_answers_that_say_the_same():
    table = Table({"The answer is 5.": 0.3, " 5 ": 0.3, "6": 0.4})
    traces = enumerated(lambda run: run.sample("answer", table))
    answer, agreement = consensus(traces)
    assert (answer, agreement) == ("5", pytest.approx(0.6))
    assert consensus(traces, normal=str)[0] == "6"


def test_a_program_may_branch_on_what_it_drew_and_use_tools():
    def branching(run):
        if run.sample("way", Table({"look up": 0.25, "compute": 0.75}, cost=1.0)) == "compute":
            return run.tool("sum", lambda a, b: str(int(a) + int(b)), "2", "3", cost=0.1)
        return run.sample("memory", Table({"5": 0.5, "4": 0.5}, cost=10.0))

    traces = enumerated(branching)
    assert marginal(traces) == pytest.approx({"5": 0.875, "4": 0.125})
    assert sorted({round(trace.cost, 6) for trace in traces}) == [1.1, 11.0]


def test_observing_inside_weighs_the_run():
    def observed(run):
        answer = run.sample("answer", Table({"a": 0.5, "b": 0.5}))
        run.observe(
            "seen",
            Table(
                {"yes": 0.9 if answer == "a" else 0.3, "no": 0.1}
                if answer == "a"
                else {"yes": 0.3, "no": 0.7}
            ),
            "yes",
        )
        return answer

    assert marginal(enumerated(observed)) == pytest.approx({"a": 0.75, "b": 0.25})


def test_a_call_of_a_model_can_be_drawn_from_and_no_more():
    def calls(run):
        return run.sample("answer", Call(lambda rng: str(rng.integers(3)), cost=2.0))

    traces = ancestral(calls, 300, seed=0)
    assert set(marginal(traces)) == {"0", "1", "2"}
    assert traces[0].cost == 2.0
    assert marginal(ancestral(calls, 300, seed=0)) == marginal(traces)
    with pytest.raises(InputError, match="draw from the program instead"):
        enumerated(calls)
    with pytest.raises(InputError, match="condition on a variable that has a Table"):
        ancestral(calls, 1, given={"answer": "2"})


def test_weights_are_those_of_the_runs():
    traces = ancestral(program(), 500, seed=0, given={"verdict": "right"})
    weights = probabilities(traces)
    assert weights.sum() == pytest.approx(1)
    assert 1 <= effective_size(traces) < 500
    assert effective_size(ancestral(program(), 500, seed=0)) == pytest.approx(500)
    assert np.argmax(weights) == np.argmax([RIGHT[trace.result] for trace in traces])


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="sum to one"):
        Table({"a": 0.5, "b": 0.4})
    with pytest.raises(InputError, match="sum to one"):
        Table({"a": -0.5, "b": 1.5})
    with pytest.raises(InputError, match="no table for"):
        Conditional(ANSWERS)("divide")
    with pytest.raises(InputError, match="no such variable: it has thought, answer, verdict"):
        ancestral(program(), 1, given={"verdct": "right"})
    with pytest.raises(InputError, match="'x' is there twice"):
        ancestral(lambda run: run.sample("x", Table({"a": 1.0})) + run.tool("x", str, "b"), 1)
    with pytest.raises(UnreachableError, match="impossible in all 12 runs"):
        marginal(enumerated(program(), given={"verdict": "maybe"}) * 2)
    with pytest.raises(InputError, match="at least one run"):
        probabilities([])
