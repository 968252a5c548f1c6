"""Thresholds from a budget: the search, the promise, and a policy that is saved and refused."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from pointsman.cost import Cost
from pointsman.depth import EarlyExit
from pointsman.depth.budget import (
    Measured,
    certified_exits,
    right_class,
    searched_frontier,
)
from pointsman.depth.exit_policy import ExitPolicy
from pointsman.depth.fitting import Batches, Recipe
from pointsman.depth.stopping import Calibrated, LearnedGate, Patience, Window, margin
from pointsman.depth.thresholds import exit_settings
from pointsman.depth.training import train_heads, train_jointly
from pointsman.errors import InputError, PolicyError
from pointsman.run import StageCosts, outcomes_of_stages, stage_sureness
from pointsman.select import max_probability

CLASSES, INPUTS, EXITS = 3, 1200, 3


def data(seed, inputs=INPUTS):
    """Most inputs are easy; the rest need the product of two coordinates."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, 6, generator=generator)
    hard = torch.rand(inputs, generator=generator) < 0.3
    x[:, 3] = torch.where(hard, 0.0, 3.0 * x[:, 3].sign())
    y = torch.where(hard, (x[:, 0] * x[:, 1] > 0).long(), 1 + (x[:, 3] > 0).long())
    return x, y


def network(seed=0):
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )
    return EarlyExit(backbone, [0, 1], example=torch.zeros(2, 6))


@pytest.fixture(scope="module")
def trained():
    net = network()
    train_jointly(net, Batches(*data(0, 2000), 100), Recipe(epochs=8, rate=1e-2))
    return net.eval()


@pytest.fixture(scope="module")
def policy(trained):
    return certified_exits(trained, *data(1), max_drop=0.02)


def logits_and_quality(seed=0, inputs=60):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(EXITS, inputs, CLASSES, generator=generator, dtype=torch.float64)
    right = torch.rand(EXITS, inputs, generator=generator)
    return logits, (right < torch.tensor([[0.6], [0.8], [0.95]])).double()


COSTS = StageCosts(
    Cost(np.array([1.0, 2.0, 4.0]), "MFLOPs"), Cost(np.array([0.3, 0.2, 0.0]), "MFLOPs")
)


def objective(settings, price, logits, quality):
    outcomes = outcomes_of_stages(
        stage_sureness(logits, max_probability), quality, COSTS, dict(enumerate(settings))
    )
    return outcomes.quality.mean(axis=1) - price * outcomes.cost.mean(axis=1) / 7.0


@pytest.mark.parametrize("price", [0.05, 0.3, 1.0])
def test_the_search_comes_close_to_the_best_of_every_grid_point(price):
    logits, quality = logits_and_quality()
    sure = stage_sureness(logits, max_probability)
    choices = [
        [math.inf, *((row[1:] + row[:-1]) / 2).tolist(), -math.inf]
        for row in sure[:-1].sort(dim=1).values
    ]
    grid = [(*pair, -math.inf) for pair in itertools.product(*choices)]
    best = objective(grid, price, logits, quality).max()
    found = exit_settings(logits, quality, COSTS, max_probability, prices=[price / 3, price])
    assert objective(found, price, logits, quality).max() >= best - 0.01


def test_no_single_threshold_can_be_moved_to_gain():
    logits, quality = logits_and_quality(seed=3, inputs=200)
    price = 0.2
    found = exit_settings(logits, quality, COSTS, max_probability, prices=[price])
    best = max(found, key=lambda s: objective([s], price, logits, quality)[0])
    value = objective([best], price, logits, quality)[0]
    sure = stage_sureness(logits, max_probability)
    for at in range(EXITS - 1):
        others = [
            (*best[:at], t, *best[at + 1 :]) for t in [*sure[at].tolist(), math.inf, -math.inf]
        ]
        assert objective(others, price, logits, quality).max() <= value + 1e-9


def test_settings_are_different_and_begin_with_the_whole_network():
    found = exit_settings(*logits_and_quality(), COSTS, max_probability)
    assert found[0] == (math.inf, math.inf, -math.inf)
    assert len(set(found)) == len(found) > 5
    assert any(setting[0] == -math.inf for setting in found)


def test_many_exits_are_searched_without_trying_every_subset():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(13, 50, CLASSES, generator=generator)
    quality = (torch.rand(13, 50, generator=generator) < 0.8).double()
    costs = StageCosts(Cost(np.ones(13), "MFLOPs"), Cost(np.full(13, 0.01), "MFLOPs"))
    found = exit_settings(logits, quality, costs, max_probability, prices=[0.1, 1.0])
    assert 10 < len(found) < 100


@pytest.mark.parametrize("name", ["max_probability", "patience", "gate", "window", "calibrated"])
def test_every_rule_gives_a_policy_that_keeps_its_budget(trained, name):
    validation, held_out = data(2, 600), data(3, 800)
    logits = trained.logits(validation[0])
    gate = LearnedGate(EXITS - 1)
    with torch.no_grad():
        gate.weight[:, 2], gate.bias[:] = 6.0, -5.0  # open where the margin is wide
    rule = {
        "max_probability": max_probability,
        "patience": Patience(within=max_probability),
        "gate": gate,
        "window": Window(0.7).fit(logits),
        "calibrated": Calibrated(margin).fit(logits, validation[1]),
    }[name]
    policy = certified_exits(
        trained, *held_out, rule=rule, max_drop=0.1, validation=validation, confidence=0.9
    )
    assert policy.certificate.certified
    assert policy.pick.saved > 0.05
    x, y = data(4, 2000)
    answer = policy.run(x)
    whole = trained(x)[-1].argmax(dim=1)
    lost = (whole == y).double().mean() - (answer.output.argmax(dim=1) == y).double().mean()
    assert float(lost) < 0.1
    spent = float(policy.cost(answer).mean())
    assert spent == pytest.approx(policy.pick.cost, rel=0.1)


def test_a_pick_is_what_a_run_does_on_the_same_inputs(trained):
    validation, (x, y) = data(2, 600), data(3, 800)
    policy = certified_exits(trained, x, y, max_drop=0.05, validation=validation)
    answer = policy.run(x)
    assert float(policy.cost(answer).mean()) == pytest.approx(policy.pick.cost)
    right = (answer.output.argmax(dim=1) == y).double().mean()
    assert float(right) == pytest.approx(policy.pick.quality)
    assert torch.equal(policy.predict(x), answer.output.argmax(dim=1))


def test_the_split_sets_inputs_aside_that_are_not_tested_on(policy):
    assert policy.certificate.inputs == INPUTS - round(0.4 * INPUTS)


def test_the_promise_can_be_against_another_network(trained):
    perfect = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES))
    with torch.no_grad():
        for weight in perfect.parameters():
            weight.zero_()
        perfect[1].bias[:] = torch.tensor([9.0, 0, 0])
    x, y = data(3, 800)
    policy = certified_exits(trained, x, torch.zeros_like(y), reference=perfect, max_drop=0.05)
    assert not policy.certificate.certified
    assert policy.certificate.observed_drop > 0.2
    spent = 2 * (6 * 8 + 8 * CLASSES) / 1e6
    assert policy.pick.saved == pytest.approx(1 - policy.pick.cost / spent)


def test_too_few_inputs_promise_what_they_can(trained):
    policy = certified_exits(trained, *data(3, 60), max_drop=0.001)
    assert not policy.certificate.certified
    assert "too few" in policy.words() or "No setting" in policy.words()


def test_a_searched_frontier_falls_in_cost_and_can_be_picked_from(trained):
    frontier = searched_frontier(trained, *data(3, 800), validation=data(2, 600))
    costs = [point.cost for point in frontier.points]
    assert len(costs) > 3
    assert all(a > b for a, b in itertools.pairwise(costs))
    assert frontier.pick(max_drop=0.05).certificate.certified


def test_quality_with_several_places_is_their_mean():
    logits = torch.zeros(2, 3, 4, CLASSES)
    logits[..., 0] = 1
    labels = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [2, 2, 2, 2]])
    assert_allclose(right_class(logits, labels), [[1, 0.25, 0]] * 2)


def test_outcomes_of_a_rule_that_remembers_follow_who_is_asked(trained):
    x, y = data(3, 300)
    rule = Patience()
    costs = trained.stage_costs(x[:1])
    measured = Measured.of(trained, x, y, rule, right_class, costs)
    settings = [(1.0, 1.0, -math.inf), (math.inf, 1.0, -math.inf), (0.0, 1.0, -math.inf)]
    outcomes = measured.outcomes(settings)
    for at, setting in enumerate(settings):
        answer = trained.run(x, setting, rule)
        assert_allclose(outcomes.cost[at], answer.route.cost(costs.per_stage(setting)).amount)


def test_a_saved_policy_answers_alike_on_a_network_built_again(policy, tmp_path):
    policy.save(tmp_path / "here" / "policy")
    fresh = network(seed=9)
    back = ExitPolicy.load(tmp_path / "here" / "policy", fresh)
    x, _ = data(5, 700)
    ours, theirs = policy.run(x), back.run(x)
    assert torch.equal(ours.output, theirs.output)
    assert torch.equal(ours.stage, theirs.stage)
    assert back.certificate == policy.certificate
    assert back.words() == policy.words()
    assert_allclose(back.cost(theirs).amount, policy.cost(ours).amount)
    assert json.loads((tmp_path / "here" / "policy" / "policy.json").read_text())["version"] == 1


def test_ten_lines_lead_from_a_trained_model_to_a_certified_one(trained, tmp_path):
    model, (x, y), (x_held, y_held) = copy.deepcopy(trained.backbone), data(6), data(7, 2000)
    net = EarlyExit(model, at=[0, 1], example=x[:2])
    train_heads(net, Batches(x, y), Recipe(epochs=6, rate=1e-2))
    policy = certified_exits(net, x_held, y_held, max_drop=0.02)
    policy.save(tmp_path / "policy")
    same = EarlyExit(copy.deepcopy(trained.backbone), at=[0, 1], example=x[:2])
    policy = ExitPolicy.load(tmp_path / "policy", same)
    assert policy.certificate.certified
    assert policy.pick.saved > 0.1
    assert torch.equal(same.logits(x[:9])[-1], trained.logits(x[:9])[-1])
    assert "Certified: with 95% confidence" in policy.words()


def test_weights_that_were_left_out_must_be_there_already(policy, trained, tmp_path):
    policy.save(tmp_path / "p", weights=False)
    assert ExitPolicy.load(tmp_path / "p", trained).thresholds == policy.thresholds
    with pytest.raises(PolicyError, match="other weights"):
        ExitPolicy.load(tmp_path / "p", network(seed=4))


def test_saving_again_replaces_the_policy_and_leaves_nothing_beside_it(policy, tmp_path):
    for _ in range(2):
        policy.save(tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("file", ["policy.json", "weights.safetensors"])
def test_any_changed_byte_is_refused_and_changes_no_network(policy, tmp_path, file):
    policy.save(tmp_path / "p")
    path = tmp_path / "p" / file
    whole = path.read_bytes()
    net = network(seed=4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rng = np.random.default_rng(0)
    for place in {0, len(whole) - 1, *rng.integers(len(whole), size=12).tolist()}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 + int(rng.integers(255))
        path.write_bytes(bytes(damaged))
        with pytest.raises(PolicyError) as caught:
            ExitPolicy.load(tmp_path / "p", net)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolicyError):
        ExitPolicy.load(tmp_path / "p", net)
    path.unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        ExitPolicy.load(tmp_path / "p", net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_network_is_refused_and_left_as_it_is(policy, tmp_path):
    policy.save(tmp_path / "p")
    torch.manual_seed(0)
    wider = nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 32), nn.ReLU()),
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )
    other = EarlyExit(wider, [0, 1], example=torch.zeros(2, 6))
    with pytest.raises(PolicyError, match="of another network"):
        ExitPolicy.load(tmp_path / "p", other)
    later = EarlyExit(wider, [1], example=torch.zeros(2, 6))
    with pytest.raises(PolicyError, match="exits 0, 1, 2 and 3 classes, got 1, 2"):
        ExitPolicy.load(tmp_path / "p", later)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda net: certified_exits(net, *data(1, 10), validation=1.0), "share of the inputs"),
        (lambda net: certified_exits(net, data(1, 9)[0], torch.zeros(8)), "9 inputs and 8 labels"),
        (lambda net: certified_exits(net, *data(1, 50), max_drop=1.0), "max_drop"),
        (lambda net: certified_exits(net, *data(1, 50), confidence=1.0), "confidence"),
        (
            lambda net: certified_exits(
                net, *data(1, 9), validation=(data(1, 9)[0], torch.zeros(8))
            ),
            "every input needs a label, got 9 and 8",
        ),
        (lambda net: certified_exits(net, *data(1, 50), rule=Window(0.8)), "no window for exit"),
        (
            lambda net: exit_settings(torch.zeros(2, 5, 3), torch.zeros(2, 4), COSTS, margin),
            "thresholds are searched on logits",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(trained, call, text):
    with pytest.raises(InputError, match=text) as caught:
        call(trained)
    assert "\n" not in str(caught.value)


def test_a_policy_needs_a_threshold_for_each_exit(policy):
    with pytest.raises(InputError, match="3 exits need a threshold"):
        ExitPolicy(policy.net, policy.rule, (0.5,), policy.costs, policy.pick)
