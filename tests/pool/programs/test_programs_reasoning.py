"""Forms of reasoning over tables, answers that say the same, and learning from own thoughts."""

import math

import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.pool.programs import (
    SelfTaughtReasoner,
    Table,
    enumerated,
    marginal,
    same_answer,
    selection_inference,
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The answer is 1,200.0.", "1200"),
        ("so the final answer: Paris!", " paris "),
        ("$3.50", "3.5"),
        ("(B)", "b"),
        ("+7", "7.00"),
        ("007", "7"),
        ("-0", "0"),
        ("ＡＢＣ", "abc"),
    ],
)
def test_answers_that_say_the_same_are_one(first, second):
    assert same_answer(first) == same_answer(second)


@pytest.mark.parametrize(
    ("first", "second"), [("-5", "5"), ("1.5", "15"), ("x = 5", "5"), ("1,2", "12"), ("", "0")]
)
def test_answers_that_differ_stay_apart(first, second):
    assert same_answer(first) != same_answer(second)


def test_selection_and_inference_chains_facts():
    rules = {"all cats purr + tom is a cat": "tom purrs", "tom purrs + x": "tom is happy"}

    def select(question, facts):
        return Table(
            {"tom purrs + x": 1.0}
            if "tom purrs" in facts
            else {"all cats purr + tom is a cat": 0.5, "tom is a cat": 0.5}
        )

    chained = selection_inference(
        "is tom happy?",
        ["all cats purr", "tom is a cat"],
        select,
        lambda picked: Table({rules.get(picked, "nothing new"): 1.0}),
        lambda question, facts: Table({"yes" if "tom is happy" in facts else "unknown": 1.0}),
        steps=2,
    )
    traces = enumerated(chained)
    # right at once and then on: 1/2; at first nothing and then too late: the other half
    assert marginal(traces) == pytest.approx({"unknown": 0.5, "yes": 0.5})
    assert list(traces[0].values)[:2] == ["selection 1", "inference 1"]
    with pytest.raises(InputError, match="at least one step"):
        selection_inference("?", [], select, select, select, steps=0)


KINDS, WAYS = 3, 4


def random_tables(seed):
    rng = np.random.default_rng(seed)
    thoughts = {
        f"kind {k}": dict(zip(map(str, range(WAYS)), rng.dirichlet(np.ones(WAYS)), strict=True))
        for k in range(KINDS)
    }
    questions = [f"kind {rng.integers(KINDS)}/{n}" for n in range(20)]
    right = {(q, str(t)): rng.uniform(0, 1) for q in questions for t in range(WAYS)}

    def answer(question, thought):
        p = right[question, thought]
        return Table({"gold": p, "other": 1 - p})

    return thoughts, questions, answer


def kind(question):
    return question.split("/")[0]


@pytest.mark.parametrize("seed", range(5))
def test_with_exact_weights_the_likelihood_of_gold_answers_never_falls(seed):
    thoughts, questions, answer = random_tables(seed)
    star = SelfTaughtReasoner(kind, answer, rounds=15).fit(thoughts, questions, ["gold"] * 20)
    assert len(star.log_likelihood_) == 16
    assert (np.diff(star.log_likelihood_) >= -1e-12).all()
    assert star.log_likelihood_[-1] > star.log_likelihood_[0]
    for table in star.thoughts_.values():
        assert math.fsum(table.values()) == pytest.approx(1)


def test_one_exact_round_is_the_mean_posterior():
    thoughts, questions, answer = random_tables(0)
    star = SelfTaughtReasoner(kind, answer, rounds=1).fit(thoughts, questions, ["gold"] * 20)
    own = [q for q in questions if kind(q) == "kind 1"]
    joint = np.array(
        [
            [p * answer(q, t).probabilities["gold"] for t, p in thoughts["kind 1"].items()]
            for q in own
        ]
    )
    mean = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    assert list(star.thoughts_["kind 1"].values()) == pytest.approx(mean.tolist())


def test_many_samples_come_near_the_exact_round():
    thoughts, _, _ = random_tables(1)
    question, right = "kind 0/0", {"0": 0.9, "1": 0.5, "2": 0.1, "3": 0.3}

    def answer(question, thought):
        return Table({"gold": right[thought], "other": 1 - right[thought]})

    exact, sampled = (
        SelfTaughtReasoner(kind, answer, rounds=1, samples=samples, seed=4).fit(
            thoughts, [question], ["gold"]
        )
        for samples in (None, 20_000)
    )
    for thought, p in exact.thoughts_["kind 0"].items():
        assert sampled.thoughts_["kind 0"][thought] == pytest.approx(p, abs=0.02)


def test_rationalising_finds_the_thought_that_sampling_hardly_ever_does():
    thoughts = {"hard": {"usual": 0.9999, "rare": 0.0001}}

    def answer(question, thought):
        return Table({"gold": 1.0} if thought == "rare" else {"other": 1.0})

    with_it, without = (
        SelfTaughtReasoner(
            lambda question: "hard", answer, rounds=1, samples=5, rationalise=rationalise
        ).fit(thoughts, ["q"], ["gold"])
        for rationalise in (True, False)
    )
    assert with_it.thoughts_["hard"] == {"rare": 1.0}
    assert without.thoughts_["hard"] == thoughts["hard"]


def test_learned_thoughts_are_the_first_variable_of_a_program():
    thoughts, questions, answer = random_tables(2)
    star = SelfTaughtReasoner(kind, answer, rounds=3).fit(thoughts, questions, ["gold"] * 20)
    question = questions[0]

    def program(run):
        return run.sample("answer", answer(question, run.sample("thought", star(question))))

    p = marginal(enumerated(program))["gold"]
    wanted = sum(
        w * answer(question, t).probabilities["gold"]
        for t, w in star.thoughts_[kind(question)].items()
    )
    assert p == pytest.approx(wanted)


def test_questions_without_answers_or_thoughts_are_refused():
    thoughts, questions, answer = random_tables(0)
    star = SelfTaughtReasoner(kind, answer)
    with pytest.raises(InputError, match="got 20 and 1"):
        star.fit(thoughts, questions, ["gold"])
    with pytest.raises(InputError, match="no thoughts for questions of kind 'new'"):
        star.fit(thoughts, ["new/1"], ["gold"])
