"""Stopping rules: what they say of an input, what they remember, and that they can be kept."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from safetensors.torch import load, save
from torch.nn import functional
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.depth.stopping import (
    Calibrated,
    LearnedGate,
    OverPlaces,
    Patience,
    Window,
    exit_shares,
    gate_features,
    margin,
    max_probability,
    negative_entropy,
    rule_back,
    rule_state,
)
from pointsman.errors import InputError, PolicyError, RouteError
from pointsman.run import Stage, StoppingRule, run_staged, staged_outcomes

EXITS, INPUTS, CLASSES = 4, 200, 5


def logits(exits=EXITS, inputs=INPUTS, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (exits, inputs, CLASSES)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def gate(exits=EXITS, seed=0):
    rule = LearnedGate(exits - 1)
    torch.manual_seed(seed)
    torch.nn.init.normal_(rule.weight)
    torch.nn.init.normal_(rule.bias)
    return rule.double()


def rules():
    return {
        "patience": Patience(),
        "patience and confidence": Patience(within=max_probability),
        "gate": gate(),
        "window": Window(0.8).fit(logits(seed=5)),
        "calibrated": Calibrated().fit(logits(seed=5), torch.arange(INPUTS) % CLASSES),
    }


KNOBS = {
    "patience": [0, 1, 2, 3],
    "patience and confidence": [0.5, 0.9, 1.3, 2],
    "gate": [0.0, 0.3, 0.5, 0.9],
    "window": [0.4, 0.2, 0.05, 0.0],
    "calibrated": [0.9, 0.6, 0.4, 0.0],
}


def stages_of(values_SNC):
    """Stages that look the answers up, so that rows which leave can be followed."""
    return [Stage(lambda rows, at=at: values_SNC[at, rows]) for at in range(len(values_SNC))]


@pytest.mark.parametrize("name", KNOBS)
def test_a_rule_says_the_same_with_a_shrinking_batch_as_over_whole_logits(name):
    rule, values = rules()[name], logits()
    labels = torch.arange(INPUTS) % CLASSES
    costs = Cost(torch.ones(EXITS).numpy(), "exits")
    found = staged_outcomes(
        values, labels, costs, {knob: float(knob) for knob in KNOBS[name]}, confidence=rule
    )
    shares = set()
    for at, knob in enumerate(KNOBS[name]):
        answer = run_staged(stages_of(values), torch.arange(INPUTS), float(knob), rule)
        assert_allclose(found.cost[at], 1 + answer.stage.numpy())
        shares.add(float((answer.stage == 0).double().mean()))
    assert len(shares) > 1, "the knob must change something"


@pytest.mark.parametrize("name", KNOBS)
def test_a_rule_does_not_mind_the_order_of_the_inputs(name):
    rule, values = rules()[name], logits()
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(3))
    knob = float(KNOBS[name][1])
    straight = run_staged(stages_of(values), torch.arange(INPUTS), knob, rule)
    mixed = run_staged(stages_of(values), order, knob, rule)
    assert_close(mixed.output, straight.output[order])
    assert_close(mixed.stage, straight.stage[order])


@pytest.mark.parametrize("name", KNOBS)
def test_an_empty_batch_gives_an_empty_sureness(name):
    rule = rules()[name]
    sure, memory = rule.sureness(logits(inputs=0)[0], 0, None)
    assert sure.shape == (0,)
    sure, _ = rule.sureness(logits(inputs=0)[1], 1, memory)
    assert sure.shape == (0,)


@pytest.mark.parametrize("name", KNOBS)
def test_a_rule_comes_back_from_json_and_tensors_as_it_was(name):
    rule, values = rules()[name], logits()
    plain, tensors = rule_state(rule)
    back = rule_back(json.loads(json.dumps(plain)), load(save(tensors)))
    assert type(back) is type(rule)
    memory = other = None
    for at in range(EXITS - 1):
        sure, memory = rule.sureness(values[at], at, memory)
        again, other = back.sureness(values[at], at, other)
        assert_close(again, sure)


@pytest.mark.parametrize("confidence", [max_probability, margin, negative_entropy])
def test_a_confidence_comes_back_by_its_name(confidence):
    plain, tensors = rule_state(confidence)
    assert rule_back(plain, tensors) is confidence


@pytest.mark.parametrize(
    "plain",
    [
        {"confidence": "eval"},
        {"rule": "Path", "state": {}},
        {"rule": "rule_back", "state": {}},
        {"rule": "keeping", "state": {}},
    ],
)
def test_a_name_that_is_no_rule_is_refused(plain):
    with pytest.raises(PolicyError, match="there is no"):
        rule_back(plain, {})


def test_what_cannot_be_kept_says_so():
    with pytest.raises(PolicyError, match="can name max_probability"):
        rule_state(lambda x: x[:, 0])
    with pytest.raises(PolicyError, match="can name max_probability"):
        rule_state(Patience(within=lambda x: x[:, 0]))


# Patience


def test_patience_counts_exits_in_a_row_that_agree():
    said = torch.tensor([[0, 1, 2], [0, 2, 2], [0, 2, 1], [1, 2, 1]])  # (exits, inputs)
    expected = [[0, 0, 0], [1, 0, 1], [2, 1, 0], [0, 2, 1]]
    memory, rule = None, Patience()
    for at, classes in enumerate(said):
        counts, memory = rule.sureness(functional.one_hot(classes, CLASSES).float(), at, memory)
        assert counts.tolist() == expected[at]


def test_patience_leaves_at_the_published_exit():
    values = logits(exits=6)
    classes = values.argmax(dim=2)
    for patience in range(1, 6):
        answer = run_staged(stages_of(values), torch.arange(INPUTS), float(patience), Patience())
        for row in range(INPUTS):
            count, expected = 0, 5
            for at in range(1, 6):
                count = count + 1 if classes[at, row] == classes[at - 1, row] else 0
                if count == patience:
                    expected = at
                    break
            assert int(answer.stage[row]) == expected


def test_exits_that_are_skipped_neither_add_to_a_count_nor_end_it():
    said = torch.tensor([[0, 1], [3, 3], [0, 2], [0, 0]])
    values = functional.one_hot(said, CLASSES).float()
    answer = run_staged(stages_of(values), torch.arange(2), [1, math.inf, 1], Patience())
    assert answer.stage.tolist() == [2, 3]


def test_a_fraction_never_reaches_the_next_count():
    certain = torch.zeros(1, CLASSES)
    certain[0, 0] = 1e4
    rule = Patience(within=max_probability)
    first, memory = rule.sureness(certain, 0, None)
    second, _ = rule.sureness(certain, 1, memory)
    assert 0.99 < float(first) < 1 <= float(second) < 2


def test_several_places_agree_only_all_together():
    first = functional.one_hot(torch.tensor([[0, 1], [2, 2]]), CLASSES).float()
    second = functional.one_hot(torch.tensor([[0, 1], [2, 3]]), CLASSES).float()
    _, memory = Patience().sureness(first, 0, None)
    assert Patience().sureness(second, 1, memory)[0].tolist() == [1, 0]


def test_patience_refuses_nan_and_confidences_beyond_one():
    with pytest.raises(RouteError, match="NaN at exit 2"):
        Patience().sureness(torch.full((1, 3), math.nan), 2, None)
    with pytest.raises(RouteError, match="lies in"):
        Patience(within=negative_entropy).sureness(torch.zeros(1, 3), 0, None)


# Learned gate


def test_features_are_probability_entropy_margin_and_entropy_of_the_squares():
    values = logits(exits=1)[0]
    p = values.softmax(dim=1)
    best = p.sort(dim=1, descending=True).values
    squares = p.square() / p.square().sum(dim=1, keepdim=True)
    expected = torch.stack(
        [best[:, 0], -(p * p.log()).sum(1), best[:, 0] - best[:, 1],
         -(squares * squares.log()).sum(1)],
        dim=1,
    )  # fmt: skip
    assert_close(gate_features(values), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_shares_of_the_exits_are_shares(rows):
    gates = torch.tensor(rows, dtype=torch.float64)
    shares = exit_shares(gates)
    assert_close(shares.sum(dim=1), torch.ones(len(rows), dtype=torch.float64))
    assert float(shares.min()) >= 0
    for row, g in zip(shares, gates, strict=True):
        for at in range(3):
            expected = max(0.0, min(float(g[at]), 1 - float(g[:at].sum())))
            assert float(row[at]) == pytest.approx(expected, abs=1e-12)


def test_chances_multiply_to_the_shares():
    rule, values = gate(), logits()
    shares = rule(values)
    memory, left = None, torch.ones(INPUTS, dtype=torch.float64)
    for at in range(EXITS - 1):
        chance, memory = rule.sureness(values[at], at, memory)
        some = left > 1e-6
        assert_close((left * chance)[some], shares[some, at], rtol=1e-6, atol=1e-9)
        assert bool(((chance >= 0) & (chance <= 1)).all())
        left = left * (1 - chance)


def test_no_gradient_of_the_gates_reaches_the_logits():
    values = logits().requires_grad_()
    gate().forward(values).sum().backward()
    assert values.grad is None


def test_whoever_comes_to_the_last_exit_leaves_there():
    sure, _ = gate().sureness(logits()[3], 3, None)
    assert sure.tolist() == [1] * INPUTS


def test_a_gate_without_its_exit_is_refused():
    with pytest.raises(InputError, match="3 gates serve 4 exits, got exit 4"):
        gate().sureness(logits()[3], 4, None)
    with pytest.raises(InputError, match="3 gates read the logits of 3 exits, got 2"):
        gate().scores(logits()[:2])
    with pytest.raises(InputError, match="a gate for each exit"):
        LearnedGate(0)


# Window


def test_a_width_passes_on_twice_its_share_around_the_decision():
    values = logits(exits=2, inputs=1001)
    rule = Window(0.7).fit(values)
    for width in (0.05, 0.1, 0.25):
        answer = run_staged(stages_of(values), torch.arange(1001), [width], rule)
        passed = answer.stage == 1
        assert float(passed.double().mean()) == pytest.approx(2 * width, abs=2 / 1001)
        scores = max_probability(values[0])
        low, high = scores.quantile(0.3 - width), scores.quantile(0.3 + width)
        inside = (scores > low) & (scores < high)
        assert int((passed & ~inside).sum()) <= 2  # the bounds themselves
        assert not bool(passed[(scores < low) | (scores > high)].any())


def test_no_width_is_the_first_exit_and_a_whole_one_the_last():
    rule = Window(0.8).fit(logits(exits=3))
    unseen = logits(exits=3, seed=9, spread=9.0)
    unseen[:, :50] *= 1e-3
    rows = torch.arange(INPUTS)
    assert set(run_staged(stages_of(unseen), rows, 0.0, rule).stage.tolist()) == {0}
    assert set(run_staged(stages_of(unseen), rows, 1.0, rule).stage.tolist()) == {2}


def test_equal_scores_lie_at_the_middle_of_their_ranks():
    values = torch.zeros(1, 11, 2)
    values[0, 6:, 0] = 3.0  # five surer inputs
    rule = Window(0.5).fit(values)
    rule.decisions_ = torch.tensor([1.0], dtype=torch.float64)  # beyond all
    sure, _ = rule.sureness(values[0], 0, None)
    assert_close(sure, torch.tensor([0.75] * 6 + [0.2] * 5, dtype=torch.float64))


def test_recentring_keeps_the_decision_and_moves_the_window():
    values = logits(exits=2, inputs=1000)
    rule = Window(0.8).fit(values)
    harder = 0.5 * logits(exits=2, inputs=1000, seed=7)
    moved = rule.recentred(harder)
    assert_close(moved.decisions_, rule.decisions_)
    passed = moved.sureness(harder[0], 0, None)[0] < 0.1
    stale = rule.sureness(harder[0], 0, None)[0] < 0.1
    assert float(passed.double().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(stale.double().mean()) != pytest.approx(0.2, abs=0.02)


def test_answers_are_accepted_at_the_coverage_asked_for():
    values = logits(inputs=1000)
    rule = Window(0.8).fit(values)
    for at in range(EXITS):
        share = float(rule.accepted(values[at], at).double().mean())
        assert share == pytest.approx(0.8, abs=0.002)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Window(1.0), "strictly between 0 and 1"),
        (lambda: Window(0.8).sureness(logits()[0], 0, None), "no window for exit 0"),
        (lambda: Window(0.8).fit(logits()[0]), r"got \(200, 5\)"),
        (lambda: Window(0.8).fit(logits(inputs=1)), "at least two inputs"),
        (lambda: Window(0.8).fit(logits()).recentred(logits(exits=5)), "no window for exit 4"),
        (lambda: Window(0.8).fit(logits()).recentred(logits(exits=2)), "4 exits, got logits of 2"),
        (lambda: Calibrated().sureness(logits()[0], 0, None), "no temperature for exit 0"),
        (lambda: Calibrated().fit(logits(), torch.zeros(3)), r"labels \(inputs,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


# Over places


def test_an_input_is_as_sure_as_its_places_on_average_or_at_least():
    values = logits().reshape(EXITS, INPUTS // 4, 4, CLASSES)
    each = torch.stack([max_probability(places) for places in values[0].unbind(dim=1)], dim=1)
    assert_close(OverPlaces().sureness(values[0], 0, None)[0], each.mean(dim=1))
    least = OverPlaces(least=True)
    assert_close(least.sureness(values[0], 0, None)[0], each.min(dim=1).values)
    back = rule_back(*rule_state(least))
    assert_close(back.sureness(values[0], 0, None)[0], each.min(dim=1).values)
    plain = OverPlaces(margin).sureness(logits()[0], 0, None)[0]
    assert_close(plain, margin(logits()[0]))
    assert OverPlaces().sureness(values[0][:0], 0, None)[0].shape == (0,)
    with pytest.raises(RouteError, match="needs a place"):
        OverPlaces().sureness(values[0][:, :0], 0, None)


# Calibrated


def test_temperatures_undo_a_scale_of_each_exit():
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(4000, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(true.softmax(dim=1), 1, generator=generator).squeeze(1)
    values = torch.stack([3 * true, true, 0.25 * true])
    rule = Calibrated().fit(values, labels)
    assert_close(
        rule.temperatures_ / rule.temperatures_[1],
        torch.tensor([3, 1, 0.25], dtype=torch.float64),
        rtol=1e-4,
        atol=0,
    )
    assert float(rule.temperatures_[1]) == pytest.approx(1, abs=0.07)
    sure = [rule.sureness(values[at], at, None)[0] for at in range(3)]
    assert_close(sure[0], sure[1], rtol=1e-3, atol=1e-3)


def test_a_fitted_temperature_is_a_minimum_of_the_loss():
    values = logits(spread=1.0)
    labels = torch.multinomial(values[1].softmax(dim=1), 1).squeeze(1)
    values[0] = 0.7 * values[1] + 0.3 * values[0]
    values[2:] = 0.3 * values[1] + values[2:]
    rule = Calibrated().fit(values, labels)
    for at, t in enumerate(rule.temperatures_.tolist()):
        best = functional.cross_entropy(values[at] / t, labels)
        for other in (0.98 * t, 1.02 * t):
            assert best <= functional.cross_entropy(values[at] / other, labels)


def test_every_rule_is_a_stopping_rule():
    assert all(isinstance(rule, StoppingRule) for rule in rules().values())
