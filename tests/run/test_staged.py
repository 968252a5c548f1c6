"""Staged runs: the lazy runner against the selection on full logits, and many settings at once."""

import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from pointsman.cost import Cost
from pointsman.errors import InputError, RouteError, UnitError
from pointsman.run import (
    Stage,
    StageCosts,
    evaluating,
    outcomes_of_stages,
    run_staged,
    stage_thresholds,
    staged_outcomes,
    subset_thresholds,
)
from pointsman.select import first_confident, margin, max_probability, negative_entropy

INF = math.inf


class Spy:
    """A stage that looks its answers up by input, and writes down who came."""

    def __init__(self, logits_TC, moves=True):
        self.logits = logits_TC
        self.advanced, self.answered = [], []
        self.stage = Stage(self.answer, self.advance if moves else None)

    def advance(self, rows):
        self.advanced.append(rows.tolist())
        return rows

    def answer(self, rows):
        self.answered.append(rows.tolist())
        return self.logits[rows]


def spies(logits_STC, moves=True):
    return [Spy(logits_TC, moves) for logits_TC in logits_STC]


def run(spied, thresholds, inputs, **options):
    return run_staged([spy.stage for spy in spied], torch.arange(inputs), thresholds, **options)


def random_logits(stages, inputs, classes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(stages, inputs, classes, generator=generator, dtype=dtype)


# Two inputs sure at stage 0, one at stage 1, one nowhere.
SURE, UNSURE = [9.0, 0.0], [0.1, 0.0]
LADDER = torch.tensor(
    [[SURE, UNSURE, UNSURE, SURE], [SURE, UNSURE, SURE, SURE], [UNSURE, UNSURE, UNSURE, UNSURE]]
)

cases = {
    "stages": st.integers(1, 5),
    "inputs": st.integers(1, 30),
    "classes": st.integers(1, 4),
    "seed": st.integers(0, 10_000),
}


@given(
    **cases,
    confidence=st.sampled_from([max_probability, margin, negative_entropy]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_the_lazy_run_equals_selection_on_full_logits(
    stages, inputs, classes, seed, confidence, dtype
):
    logits = random_logits(stages, inputs, classes, seed, dtype)
    scores_TS = torch.stack([confidence(logits_TC) for logits_TC in logits], dim=1)
    # thresholds taken from the scores themselves, so that ties happen
    limits = [float(scores_TS[(seed + s) % inputs, s]) for s in range(stages)]
    expected = first_confident(scores_TS, limits)
    answer = run(spies(logits), limits, inputs, confidence=confidence)
    answer.route.validate()
    torch.testing.assert_close(answer.route.mask(), expected.mask())
    torch.testing.assert_close(answer.route.to_dense(), expected.to_dense().to(dtype))
    torch.testing.assert_close(answer.stage, expected.answered_by())
    torch.testing.assert_close(answer.output, logits[answer.stage, torch.arange(inputs)])


def test_later_stages_see_only_those_still_unsure():
    spied = spies(LADDER)
    answer = run(spied, 0.9, 4)
    assert [spy.answered for spy in spied] == [[[0, 1, 2, 3]], [[1, 2]], [[1]]]
    assert [spy.advanced for spy in spied] == [[[0, 1, 2, 3]], [[1, 2]], [[1]]]
    assert answer.stage.tolist() == [0, 2, 1, 0]
    assert answer.route.inputs.tolist() == [0, 1, 1, 1, 2, 2, 3]
    assert answer.route.branches.tolist() == [0, 0, 1, 2, 0, 1, 0]
    assert answer.route.weights.tolist() == [1, 0, 0, 1, 0, 1, 1]
    assert answer.route.load().tolist() == [4, 2, 1]


def test_nothing_runs_once_everybody_left():
    spied = spies(LADDER)
    answer = run(spied, [-INF, 0.9], 4)
    assert [len(spy.advanced) for spy in spied] == [1, 0, 0]
    torch.testing.assert_close(answer.output, LADDER[0])
    assert answer.route.num_branches == 3


def test_a_threshold_that_is_met_exactly_answers():
    score = float(max_probability(LADDER[0])[1])
    assert run(spies(LADDER), [score, score], 4).stage.tolist() == [0, 0, 0, 0]
    above = np.nextafter(np.float32(score), np.float32(2))
    assert run(spies(LADDER), [above, -INF], 4).stage.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("options", [{"thresholds": [0.9, INF, 0.9]}, {"skip": [1]}])
def test_a_skipped_stage_moves_the_state_on_but_does_not_answer(options):
    spied = spies(LADDER)
    answer = run(spied, options.pop("thresholds", 0.9), 4, **options)
    assert spied[1].advanced == [[1, 2]]
    assert spied[1].answered == []
    assert answer.stage.tolist() == [0, 2, 2, 0]
    assert answer.route.branches.tolist() == [0, 0, 1, 2, 0, 1, 2, 0]  # moving on was work


def test_a_skipped_stage_that_has_nothing_to_move_is_not_on_the_route():
    spied = spies(LADDER, moves=False)
    answer = run(spied, [0.9, INF], 4)
    assert spied[1].answered == []
    assert answer.route.branches.tolist() == [0, 0, 2, 0, 2, 0]


def test_skipping_all_but_the_last_lets_the_last_answer_everything():
    spied = spies(LADDER, moves=False)
    answer = run(spied, INF, 4)
    assert spied[0].answered == spied[1].answered == []
    torch.testing.assert_close(answer.output, LADDER[2])


def test_an_empty_batch_gives_an_empty_answer_of_the_right_width():
    spied = spies(LADDER)
    answer = run(spied, [INF, 0.5], 0)
    assert answer.output.shape == (0, 2)
    assert answer.output.dtype == LADDER.dtype
    assert len(answer.route) == answer.route.num_inputs == 0
    assert [len(spy.answered) for spy in spied] == [0, 1, 0]


def test_one_stage_answers_everything_whatever_the_threshold():
    answer = run(spies(LADDER[:1]), INF, 4)
    torch.testing.assert_close(answer.output, LADDER[0])
    assert answer.route.weights.tolist() == [1] * 4


def test_every_part_of_a_state_shrinks_together():
    Pair = namedtuple("Pair", ["left", "right"])
    seen = []

    def answer(state):
        seen.append(state)
        return LADDER[len(seen) - 1][state["at"]]

    rows = torch.arange(4)
    state = {"at": rows, "more": (rows * 10, [rows * 100], None), "pair": Pair(rows, rows[:, None])}
    run_staged([Stage(answer)] * 3, state, 0.9)
    assert [s["at"].tolist() for s in seen] == [[0, 1, 2, 3], [1, 2], [1]]
    assert seen[1]["more"][0].tolist() == [10, 20]
    assert seen[1]["more"][1][0].tolist() == [100, 200]
    assert seen[1]["more"][2] is None
    assert isinstance(seen[2]["pair"], Pair)
    assert seen[2]["pair"].right.tolist() == [[1]]


def test_the_state_of_one_stage_feeds_the_next():
    stages = [Stage(lambda x: x * torch.ones(1, 2), lambda x: 2 * x)] * 3
    answer = run_staged(stages, torch.arange(3.0)[:, None], INF)
    torch.testing.assert_close(answer.output, 8 * torch.arange(3.0)[:, None].expand(3, 2))


@given(**cases)
@settings(max_examples=25, deadline=None)
def test_permuting_the_inputs_permutes_the_answer(stages, inputs, classes, seed):
    logits = random_logits(stages, inputs, classes, seed)
    order = torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))
    plain, mixed = (run(spies(given), 0.6, inputs) for given in (logits, logits[:, order]))
    torch.testing.assert_close(mixed.output, plain.output[order])
    torch.testing.assert_close(mixed.stage, plain.stage[order])


def test_gradients_reach_the_logits_that_answered_and_no_others():
    logits = random_logits(3, 8, 3, dtype=torch.float64).requires_grad_()
    answer = run(spies(logits), 0.7, 8)
    answer.output.sum().backward()
    expected = torch.zeros_like(logits)
    expected[answer.stage, torch.arange(8)] = 1
    torch.testing.assert_close(logits.grad, expected)
    assert 0 < int((answer.stage == 0).sum()) < 8


@pytest.mark.parametrize("given", [0.5, [0.5, 0.5], [0.5, 0.5, 7.0], np.array([0.5, 0.5])])
def test_thresholds_may_be_one_number_or_one_for_each_stage(given):
    assert_array_equal(stage_thresholds(given, 3), [0.5, 0.5, -INF])


def test_subset_thresholds_use_only_the_stages_named():
    assert subset_thresholds([0, 2], 0.9, 4) == (0.9, INF, -INF, INF)
    assert subset_thresholds([1], 0.9, 3) == (INF, -INF, INF)
    spied = spies(random_logits(4, 10, 3), moves=False)
    answer = run(spied, subset_thresholds([0, 2], 0.8, 4), 10)
    assert set(answer.stage.tolist()) == {0, 2}
    assert spied[1].answered == spied[3].answered == []


def answering(*outputs):
    return [Stage(lambda x, out=out: out[: len(x)]) for out in outputs]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: run(spies(LADDER), [0.5], 4), InputError, "3 stages need 2 thresholds"),
        (lambda: run(spies(LADDER), [0.5, math.nan], 4), InputError, "NaN at stage 1"),
        (lambda: run_staged([], torch.ones(1), 0.5), InputError, "at least one stage"),
        (lambda: run(spies(LADDER), 0.5, 4, skip=[2]), InputError, "one of 0 to 1"),
        (lambda: run(spies(LADDER), 0.5, 4, skip=[-1]), InputError, "got -1"),
        (
            lambda: run_staged(answering(LADDER[0]), {"a": torch.ones(4), "b": torch.ones(3)}, 0),
            InputError,
            r"share their first dimension.*\(4,\), \(3,\)",
        ),
        (lambda: run_staged(answering(LADDER[0]), torch.tensor(1.0), 0), InputError, "one row per"),
        (lambda: run_staged(answering(LADDER[0]), (), 0), InputError, "at least one tensor"),
        (lambda: run_staged(answering(LADDER[0]), ("a",), 0), InputError, "got str"),
        (
            lambda: run_staged(answering(torch.ones(3)), torch.ones(3), 0),
            InputError,
            r"tensor \(3, classes\).*stage 0 gave \(3,\)",
        ),
        (
            lambda: run_staged(answering(LADDER[1], torch.ones(4, 3)), torch.ones(4), 0.9),
            InputError,
            "stage 1 gave 3 classes",
        ),
        (
            lambda: run_staged(answering(LADDER[1], LADDER[1].double()), torch.ones(4), 0.9),
            InputError,
            "float64.*float32",
        ),
        (
            lambda: run(spies(LADDER), 0.5, 4, confidence=lambda logits: logits),
            RouteError,
            r"one number per input.*\(4, 2\)",
        ),
        (lambda: subset_thresholds([2, 1], 0.5, 3), InputError, "ascending"),
        (lambda: subset_thresholds([3], 0.5, 3), InputError, "from 0 to 2"),
        (lambda: subset_thresholds([], 0.5, 3), InputError, "ascending"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("confidence", [max_probability, lambda logits: logits.amax(1)])
def test_nan_names_the_input_and_the_stage_it_came_from(confidence):
    logits = LADDER.clone()
    logits[1, 2, 0] = math.nan  # the second row of those that reach stage 1
    with pytest.raises(RouteError, match="NaN for input 2 at stage 1"):
        run(spies(logits), 0.9 if confidence is max_probability else 5.0, 4, confidence=confidence)


# Many settings at once


@given(**cases, moves=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_many_settings_at_once_equal_one_lazy_run_each(stages, inputs, classes, seed, moves, data):
    logits = random_logits(stages, inputs, classes, seed)
    labels = torch.randint(classes, (inputs,), generator=torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    advance = Cost(rng.random(stages) * moves, "ms")
    costs = StageCosts(advance, Cost(rng.random(stages), "ms"))
    level = st.sampled_from([0.3, 0.5, 0.8, 1.0, INF, -INF])  # 1.0 is met exactly by one class
    rows = data.draw(
        st.lists(st.lists(level, min_size=stages, max_size=stages), min_size=1, max_size=4)
    )
    outcomes = staged_outcomes(
        logits, labels, costs if moves else costs.answer, dict(enumerate(rows))
    )
    for at, row in enumerate(rows):
        answer = run(spies(logits, moves), row, inputs)
        right = (answer.output.argmax(1) == labels).double().numpy()
        spent = answer.route.cost(costs.per_stage(row))
        assert_array_equal(outcomes.quality[at], right)
        assert_allclose(outcomes.cost[at], spent.amount)
        assert spent.unit == outcomes.unit


def test_the_reference_is_one_stage_alone():
    labels = torch.tensor([0, 1, 0, 0])
    answer = Cost(np.array([1.0, 10.0, 100.0]), "MFLOPs")
    moving = StageCosts(Cost(np.array([5.0, 6.0, 7.0]), "MFLOPs"), answer)
    for costs, expected in ((answer, 10.0), (moving, 5 + 6 + 10)):
        outcomes = staged_outcomes(LADDER, labels, costs, {"a": 0.9}, reference=1)
        assert_array_equal(outcomes.reference_cost, np.full(4, expected))
        assert_array_equal(outcomes.reference_quality, [1, 0, 1, 1])


def test_failed_stages_are_paid_for_and_skipped_heads_are_not():
    costs = StageCosts(Cost([1.0, 2.0, 4.0], "ms"), Cost([10.0, 20.0, 40.0], "ms"))
    settings_ = {"all": 0.9, "without the middle": [0.9, INF], "last": INF, "first": -INF}
    outcomes = staged_outcomes(LADDER, torch.zeros(4, dtype=torch.long), costs, settings_)
    assert_array_equal(
        outcomes.cost,
        [[11, 77, 33, 11], [11, 57, 57, 11], [47, 47, 47, 47], [11, 11, 11, 11]],
    )
    assert outcomes.knobs == tuple(settings_)


def test_a_threshold_met_exactly_answers_among_many_settings_too():
    confidence = torch.tensor([[0.7, 0.3, INF], [0.5, 0.5, 0.5]])  # 0.7 is not exact in float32
    settings_ = {"met": 0.7, "skipped": INF}
    outcomes = outcomes_of_stages(confidence, torch.ones(2, 3), Cost([1.0, 3.0], "ms"), settings_)
    assert_array_equal(outcomes.cost, [[1, 4, 1], [3, 3, 3]])


def test_any_quality_may_be_weighed_and_not_only_right_or_wrong():
    confidence = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    quality = torch.tensor([[0.25, 0.5], [0.75, 1.0]])
    outcomes = outcomes_of_stages(confidence, quality, Cost([1.0, 3.0], "US$"), {"k": 0.8})
    assert_array_equal(outcomes.quality, [[0.25, 1.0]])
    assert_array_equal(outcomes.cost, [[1.0, 4.0]])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda c: staged_outcomes(LADDER, torch.zeros(3), c, {"k": 1}),
            InputError,
            r"got \(3, 4, 2\) and \(3,\)",
        ),
        (lambda c: staged_outcomes(LADDER, torch.full((4,), 2), c, {"k": 1}), InputError, "0 to 1"),
        (lambda c: staged_outcomes(LADDER, torch.full((4,), -1), c, {"k": 1}), InputError, "-1"),
        (lambda c: staged_outcomes(LADDER, LABELS, c * 0 + c, {}), InputError, "one setting"),
        (
            lambda c: staged_outcomes(LADDER, LABELS, Cost([1.0], "ms"), {"k": 1}),
            InputError,
            "got 1",
        ),
        (lambda c: staged_outcomes(LADDER, LABELS, c, {"k": [1, 1, 1, 1]}), InputError, "need 2"),
        (
            lambda c: staged_outcomes(LADDER, LABELS, c, {"k": 1}, reference=3),
            InputError,
            "stage 3",
        ),
        (
            lambda c: outcomes_of_stages(LADDER[..., 0] * math.nan, LADDER[..., 0], c, {"k": 1}),
            InputError,
            "NaN at stage 0, input 0",
        ),
        (lambda c: StageCosts(c, Cost(c.amount, "s")), UnitError, "'ms' and 's'"),
        (lambda c: StageCosts(c, Cost([1.0], "ms")), InputError, "got 3 and 1"),
        (lambda c: StageCosts.of(Cost([1.0, -1.0], "ms")), InputError, "at least 0"),
        (lambda c: StageCosts.of(Cost([1.0, math.nan], "ms")), InputError, "finite"),
        (lambda c: StageCosts.of(c).alone(-4), InputError, "3 stages"),
    ],
)
def test_outcomes_refuse_what_does_not_fit(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call(Cost(np.array([1.0, 2.0, 3.0]), "ms"))
    assert "\n" not in str(caught.value)


LABELS = torch.zeros(4, dtype=torch.long)


def test_evaluating_gives_every_submodule_its_own_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()  # frozen statistics

    def fail():
        with evaluating(net):
            assert not any(m.training for m in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in net.modules()] == [True, True, False]


class Agreement:
    """Sure once two stages in a row say the same; remembers the last answer."""

    def sureness(self, logits, stage, memory):
        said = logits.argmax(dim=1)
        same = torch.zeros(len(said)) if memory is None else (said == memory).float()
        return same, said


def test_a_rules_memory_follows_the_inputs_that_stay():
    table = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 1], [2, 1, 1, 1], [0, 1, 0, 1]])  # inputs, stages
    logits = torch.nn.functional.one_hot(table, 3).double()
    stages = [Stage(lambda x, at=at: logits[x, at]) for at in range(4)]
    answer = run_staged(stages, torch.arange(4), 0.5, Agreement())
    assert answer.stage.tolist() == [1, 2, 2, 3]
    assert answer.output.argmax(dim=1).tolist() == [0, 0, 1, 1]


def test_a_rule_does_not_see_skipped_stages_lazily_or_worked_out():
    table = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    logits = torch.nn.functional.one_hot(table, 3).double()
    stages = [Stage(lambda x, at=at: logits[x, at]) for at in range(4)]
    limits = [0.5, math.inf, 0.5, -math.inf]
    assert run_staged(stages, torch.arange(2), limits, Agreement()).stage.tolist() == [2, 3]
    found = staged_outcomes(
        logits.transpose(0, 1),
        torch.tensor([0, 0]),
        Cost(np.array([1.0, 1, 1, 1]), "MFLOPs"),
        {"every": 0.5, "some": limits},
        confidence=Agreement(),
    )
    assert found.knobs == ("every", "some")
    assert found.cost.tolist() == [[4, 2], [2, 3]]


def test_answers_with_several_places_an_input_are_put_back_in_order():
    outputs = torch.arange(24.0).reshape(2, 3, 2, 2)
    stages = [Stage(lambda x, at=at: outputs[at][x]) for at in range(2)]
    answer = run_staged(stages, torch.arange(3), 9.0, lambda y: y.flatten(1).mean(dim=1))
    assert answer.stage.tolist() == [1, 1, 0]
    assert answer.output.tolist() == torch.stack([*outputs[1][:2], outputs[0][2]]).tolist()
