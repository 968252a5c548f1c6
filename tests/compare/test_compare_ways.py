"""The settings of the ways: candidates, thinning, the order of testing, costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from pointsman.compare import ways
from pointsman.compare.rules import USUAL, rules_for
from pointsman.compare.ways import (
    LONGEST_SEQUENCE,
    MOST_SETTINGS,
    Answers,
    Way,
    answer_all,
    stage_costs,
    thin,
)
from pointsman.cost import Cost
from pointsman.frontier import Outcomes, Point, standard_error
from pointsman.run import Stage, StageCosts, run_staged

costs_of_points = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60, unique=True).map(sorted)


@settings(deadline=None)
@given(costs_of_points, st.integers(2, 20))
def test_thinning_keeps_the_ends_and_the_order(costs: list[float], most: int) -> None:
    points = [Point(f"{i}", i / len(costs), cost) for i, cost in enumerate(costs)]
    kept = thin(points, most)
    assert len(kept) <= most
    assert kept[0] is points[0]
    assert kept[-1] is points[-1]
    places = [points.index(point) for point in kept]
    assert places == sorted(set(places))
    assert kept == points or len(points) > most


def test_thinning_takes_even_steps_of_ratio() -> None:
    points = [Point(str(i), 0.0, 1.1**i) for i in range(101)]
    assert [point.knob for point in thin(points, 5)] == ["0", "25", "50", "75", "100"]


@st.composite
def outcomes(draw: st.DrawFn) -> Outcomes:
    """Right or wrong answers of up to 30 settings, of which the first is the reference itself."""
    count, inputs = draw(st.integers(0, 30)), draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    quality = (rng.random((count + 1, inputs)) < rng.uniform(0.3, 1, (count + 1, 1))).astype(float)
    cost = rng.uniform(0.1, 2, (count + 1, 1)) * np.ones((1, inputs))
    cost[0] = 1.0
    knobs = tuple(f"s{i}" for i in range(count + 1))
    return Outcomes(knobs, quality, cost, quality[0], cost[0], "MFLOPs")


@settings(deadline=None)
@given(outcomes())
def test_the_testing_order_falls_in_cost_and_starts_below_the_reference(found: Outcomes) -> None:
    order = ways.testing_order(found)
    rows = [found.setting(knob) for knob in order]
    cost = found.cost[rows].mean(axis=1)
    risk = (found.drops().mean(axis=1) + 2 * standard_error(found.drops()))[rows]
    assert 1 <= len(order) <= LONGEST_SEQUENCE
    assert (np.diff(cost) < 0).all()
    assert (np.diff(risk) > 0).all()
    cheaper = found.cost[:, 0] < 1.0
    assert cheaper[rows].all() if cheaper.any() else order == ["s0"]
    if cheaper.any():  # the ends: nothing is cheaper than the last
        assert cost[-1] == found.cost[cheaper].mean(axis=1).min()


def test_the_reference_alone_is_tested_where_nothing_is_cheaper() -> None:
    quality = np.ones((2, 9))
    cost = np.array([[1.0], [1.5]]) * np.ones((1, 9))
    found = Outcomes(("same", "dearer"), quality, cost, quality[0], cost[0], "MFLOPs")
    assert ways.testing_order(found) == ["same"]


def answers_of(confidence: list[list[float]], right: list[list[int]]) -> Answers:
    quality = torch.tensor(right, dtype=torch.float32)
    return Answers(
        {USUAL: torch.tensor(confidence)}, quality, 1 - quality, torch.full_like(quality, math.nan)
    )


def way_of(name: str, answers: Answers, costs: list[float]) -> Way:
    count = len(costs)
    stages = tuple(Stage(lambda x: x) for _ in range(count))
    names = tuple(f"n{i}" for i in range(count))
    return Way(name, names, stages, StageCosts.of(Cost(np.array(costs), "MFLOPs")))


@pytest.fixture
def validation() -> Answers:
    """Three stages, each better than the one before, and sure where they are right."""
    rng = np.random.default_rng(0)
    right = rng.random((3, 200)) < np.array([[0.7], [0.85], [0.95]])
    confidence = np.clip(0.5 + 0.4 * right + 0.1 * rng.random((3, 200)), 0, 1)
    return answers_of(confidence.tolist(), right.astype(int).tolist())


@pytest.mark.parametrize(
    ("name", "alone", "in_turn"),
    [("dense", True, False), ("nested", True, False), ("exits", True, True)],
)
def test_a_way_offers_what_it_can_do(
    name: str, alone: bool, in_turn: bool, validation: Answers
) -> None:
    found = way_of(name, validation, [1.0, 4.0, 20.0]).with_settings(validation).settings
    assert any(" > " not in knob for knob in found) == alone
    assert any(" > " in knob for knob in found) == in_turn


def test_a_cascade_asks_at_least_two(validation: Answers) -> None:
    found = way_of("cascade", validation, [1.0, 4.0, 20.0]).with_settings(validation).settings
    assert found
    assert all(" > " in knob for knob in found)
    assert len(found) <= MOST_SETTINGS


def test_every_rule_that_gives_something_is_kept() -> None:
    """The margin alone knows here who is wrong: the best of its settings stays on it."""
    rng = np.random.default_rng(1)
    right = (rng.random((3, 400)) < np.array([[0.7], [0.8], [0.95]])).astype(np.float32)
    noise = torch.tensor(rng.random((3, 400)), dtype=torch.float32)
    quality = torch.tensor(right)
    knowing = 0.5 * quality + 0.5 * noise * quality
    spent = torch.full_like(quality, math.nan)
    validation = Answers({USUAL: noise, "margin": knowing}, quality, 1 - quality, spent)
    way = way_of("exits", validation, [1.0, 4.0, 20.0]).with_settings(validation)
    by_rule = {
        rule: [knob for knob, s in way.settings.items() if s.rule == rule and " > " in knob]
        for rule in validation.sureness
    }
    found = way.outcomes(validation, right[-1].astype(float), 20.0)
    best = str(found.knobs[int(found.quality.mean(axis=1).argmax())]).removeprefix("exits: ")
    assert best in by_rule["margin"]
    assert all(" @ margin 0." in knob for knob in by_rule["margin"])
    assert not any("margin" in knob for knob in by_rule[USUAL])


def test_settings_go_from_the_dearest_to_the_cheapest(validation: Answers) -> None:
    way = way_of("exits", validation, [1.0, 4.0, 20.0]).with_settings(validation)
    reference = validation.quality[-1].double().numpy()
    found = way.outcomes(validation, reference, 20.0)
    assert found.knobs == tuple(f"exits: {knob}" for knob in way.settings)
    assert_array_equal(found.reference_cost, np.full(200, 20.0))
    cost = found.cost.mean(axis=1)
    assert (np.diff(cost) < 0).all()


def test_a_setting_does_what_its_knob_says(validation: Answers) -> None:
    way = way_of("exits", validation, [1.0, 4.0, 20.0]).with_settings(validation)
    for knob, setting in way.settings.items():
        row = setting.thresholds
        asked = [name for name, limit in zip(way.stage_names, row, strict=True) if limit < math.inf]
        chain, _, limit = knob.partition(" @ ")
        assert chain.split(" > ") == asked
        if limit:
            first = row[way.stage_names.index(asked[0])]
            assert first == float(limit)


@pytest.mark.parametrize("kind", ["features", "text"])
def test_answers_are_judged_input_by_input(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(600, 5) if kind == "features" else torch.randint(0, 9, (600, 4))
    y = torch.randint(0, 3, (600,) if kind == "features" else (600, 4))
    net = nn.Linear(5, 3) if kind == "features" else nn.Embedding(9, 3)
    found = answer_all([Stage(net), Stage(lambda state: -net(state))], x, y, kind)  # type: ignore[arg-type]
    assert found.quality.shape == (2, 600)
    log = torch.log_softmax(-net(x), dim=-1)
    loss = -log.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    if kind == "features":
        torch.testing.assert_close(found.quality[1], (log.argmax(dim=1) == y).float())
        torch.testing.assert_close(found.sureness[USUAL][1], log.exp().amax(dim=1))
        entropy = -(log.exp() * log).sum(dim=1)
        torch.testing.assert_close(found.sureness["entropy"][1], 1 - entropy / math.log(3))
    else:
        loss = loss.mean(dim=1)
        two = log.exp().topk(2).values
        torch.testing.assert_close(found.sureness[USUAL][1], two[..., 0].mean(dim=1))
        torch.testing.assert_close(found.sureness["margin"][1], (two[..., 0] - two[..., 1]).mean(1))
        torch.testing.assert_close(found.quality[1], (1 - loss / math.log(2) / 8).clamp(0, 1))
    torch.testing.assert_close(found.loss[1], loss.detach())


def test_costs_count_what_each_stage_runs() -> None:
    first, second, head = nn.Linear(8, 16), nn.Linear(16, 32), nn.Linear(16, 3)
    stages = [Stage(head, first), Stage(lambda state: state[:, :3], second)]
    with torch.no_grad():
        found = stage_costs(stages, torch.zeros(64, 8), "MFLOPs")
    assert_allclose(found.advance.amount, [2 * 8 * 16 / 1e6, 2 * 16 * 32 / 1e6])
    assert_allclose(found.answer.amount, [2 * 16 * 3 / 1e6, 0])


def test_costs_of_text_are_per_token() -> None:
    net = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
    example = torch.zeros(4, 10, dtype=torch.uint8)
    found = stage_costs([Stage(lambda ids: net(ids.long()))], example, "MFLOPs")
    assert_allclose(found.answer.amount, [2 * 8 * 256 / 1e6])


def test_costs_in_time_are_positive() -> None:
    found = stage_costs([Stage(nn.Linear(64, 64))], torch.zeros(64, 64), "ms")
    assert found.answer.unit == "ms"
    assert (np.asarray(found.answer.amount) > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1_000))
def test_vectorised_outcomes_equal_the_lazy_run(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nets = [torch.randn(6, 4, generator=generator) * scale for scale in (1.0, 2.0, 3.0)]
    stages = [Stage(lambda x, w=w: x @ w) for w in nets]
    x = torch.randn(300, 6, generator=generator)
    y = torch.randint(0, 4, (300,), generator=generator)
    answers = answer_all(stages, x, y, "features")
    amounts = StageCosts.of(Cost(np.array([1.0, 5.0, 30.0]), "MFLOPs"))
    way = Way("cascade", ("a", "b", "c"), tuple(stages), amounts).with_settings(answers)
    found = way.outcomes(answers, answers.quality[-1].double().numpy(), 30.0)
    rules = rules_for("features")
    for row, setting in zip(range(len(found.knobs)), way.settings.values(), strict=True):
        limits = setting.thresholds
        lazy = run_staged(stages, x, limits, rules[setting.rule])
        right = (lazy.output.argmax(dim=1) == y).double().numpy()
        assert_array_equal(found.quality[row], right)
        assert_allclose(found.cost[row], lazy.route.cost(amounts.per_stage(limits)).amount)
