"""Early exits: parity with the plain backbone, shrinking batches, counted costs, clear refusals."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from pointsman.depth import EarlyExit, joint_loss
from pointsman.errors import InputError, RouteError
from pointsman.select import margin, negative_entropy

CLASSES = 3


class Spy(nn.Module):
    """Passes features on and counts the inputs it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x


def mlp(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = [
        ("one", nn.Linear(4, 8)),
        ("act", nn.ReLU()),
        ("two", nn.Linear(8, 6)),
        ("norm", nn.BatchNorm1d(6)),
        ("out", nn.Linear(6, CLASSES)),
    ]
    return nn.Sequential(OrderedDict(layers)).to(dtype)


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 7, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(7 * 16, CLASSES),
    )


def inputs(count=40, dtype=torch.float32, seed=1):
    return 3 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exits(dtype=torch.float32, **options):
    return EarlyExit(mlp(dtype), ["act", "norm"], example=inputs(2, dtype), **options)


def plain(backbone, x):
    """The backbone in evaluation mode, on a copy."""
    with torch.no_grad():
        return copy.deepcopy(backbone).eval()(x)


def test_exits_are_named_after_the_children_they_follow():
    net = exits()
    assert net.exits == ("act", "norm", "out")
    assert [list(dict(part.named_children())) for part in net.segments] == [
        ["one", "act"],
        ["two", "norm"],
        ["out"],
    ]
    assert net.num_classes == CLASSES


@pytest.mark.parametrize("at", [["act", "norm"], [1, 3], [-4, -2], [1, "norm"]])
def test_exits_are_given_by_index_or_by_name(at):
    assert EarlyExit(mlp(), at, example=inputs(2)).exits == ("act", "norm", "out")


def test_a_list_of_modules_is_a_backbone_too():
    parts = list(mlp())
    for backbone in (parts, nn.ModuleList(parts), (p for p in parts)):
        net = EarlyExit(backbone, [1], example=inputs(2))
        assert net.exits == ("1", "4")
        torch.testing.assert_close(net.eval()(inputs())[-1], plain(nn.Sequential(*parts), inputs()))


def test_a_module_that_comes_twice_is_applied_twice():
    relu, layer = nn.ReLU(), nn.Linear(4, 4)
    backbone = nn.Sequential(layer, relu, layer, relu, nn.Linear(4, 2))
    net = EarlyExit(backbone, [1], example=inputs(2))
    torch.testing.assert_close(net(inputs())[-1], backbone(inputs()))
    assert len(net.backbone) == 5


def test_building_leaves_the_backbone_alone():
    backbone = mlp()
    backbone.norm.eval()
    before = copy.deepcopy(backbone.state_dict())
    EarlyExit(backbone, ["act"], example=inputs(5))
    assert backbone.training
    assert not backbone.norm.training
    torch.testing.assert_close(backbone.state_dict(), before)


def test_the_backbone_comes_back_as_it_was_and_is_shared():
    backbone = mlp()
    net = EarlyExit(backbone, ["act"], example=inputs(2))
    assert list(dict(net.backbone.named_children())) == list(dict(backbone.named_children()))
    assert net.backbone.two is backbone.two


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_gives_logits_at_every_exit_in_the_dtype_of_the_input(dtype):
    outputs = exits(dtype)(inputs(7, dtype))
    assert [o.shape for o in outputs] == [(7, CLASSES)] * 3
    assert {o.dtype for o in outputs} == {dtype}


@pytest.mark.parametrize(
    ("features", "pooled"),
    [((5,), None), ((5, 4), (2,)), ((5, 3, 4), (2, 3)), ((5, 2, 3, 2), (2, 3, 4))],
)
def test_default_heads_average_over_all_but_the_channels(features, pooled):
    example = torch.randn(6, *features)
    end = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    net = EarlyExit([nn.Identity(), end], [0], example=example)
    means = example if pooled is None else example.mean(dim=pooled)
    torch.testing.assert_close(net(example)[0], net.heads[0].linear(means))
    assert net.heads[0].linear.weight.shape == (CLASSES, 5)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_running_to_an_exit_equals_forward_at_that_exit(stage):
    net = exits(torch.float64)
    x = inputs(dtype=torch.float64)
    thresholds = [math.inf] * stage + [-math.inf] * (2 - stage)
    answer = net.run(x, thresholds)
    assert answer.stage.tolist() == [stage] * len(x)
    torch.testing.assert_close(answer.output, net.eval()(x)[stage])


@pytest.mark.parametrize("confidence", [margin, negative_entropy])
def test_a_mixed_run_gives_each_input_the_logits_of_its_exit(confidence):
    net = exits(torch.float64)
    x = inputs(200, torch.float64)
    scores = confidence(net.eval()(x)[0].detach())
    answer = net.run(x, float(scores.median()), confidence)
    logits = torch.stack(net(x)).detach()
    torch.testing.assert_close(answer.output, logits[answer.stage, torch.arange(len(x))])
    assert 80 <= int((answer.stage == 0).sum()) <= 120


def test_zero_lets_the_first_exit_answer_everything():
    net = exits()
    answer = net.run(inputs(), 0.0)
    assert answer.route.load().tolist() == [40, 0, 0]
    torch.testing.assert_close(answer.output, net.eval()(inputs())[0])


@pytest.mark.parametrize("threshold", [1.01, 2.0, math.inf])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_above_one_the_last_exit_answers_exactly_as_the_plain_backbone(build, threshold):
    backbone = build()
    x = inputs() if build is mlp else torch.randn(9, 1, 8, 8)
    net = EarlyExit(backbone, [1, 2], example=x[:2])
    answer = net.run(x, threshold)
    assert answer.stage.tolist() == [2] * len(x)
    torch.testing.assert_close(answer.output, plain(backbone, x), rtol=0, atol=0)


def test_later_segments_and_heads_see_only_those_still_unsure():
    spies = [Spy() for _ in range(5)]
    backbone = [nn.Linear(4, 8), spies[0], nn.Linear(8, 8), spies[1], nn.Linear(8, 3), spies[2]]
    heads = [nn.Sequential(spy, nn.Linear(8, 3)) for spy in spies[3:]]
    torch.manual_seed(0)
    net = EarlyExit(backbone, [1, 3], example=inputs(2), heads=heads)
    for spy in spies:
        spy.seen.clear()
    answer = net.run(inputs(100), 0.6)
    first, second, last = answer.route.load().tolist()
    assert first == 100 > second > last > 0
    assert [spy.seen for spy in spies] == [[100], [second], [last], [100], [second]]


def test_an_early_head_at_infinity_is_left_out_and_its_segment_is_not():
    spies = [Spy(), Spy()]
    heads = [nn.Sequential(spies[0], nn.Linear(8, 3)), nn.Sequential(spies[1], nn.Linear(6, 3))]
    net = exits(heads=heads)
    for spy in spies:
        spy.seen.clear()
    answer = net.run(inputs(), [math.inf, 0.0])
    assert [spy.seen for spy in spies] == [[], [40]]
    assert answer.route.load().tolist() == [40, 40, 0]


def test_nothing_runs_past_the_exit_where_the_last_input_left():
    spy = Spy()
    net = EarlyExit([nn.Linear(4, 8), spy, nn.Linear(8, 3)], [0], example=inputs(2))
    spy.seen.clear()
    net.run(inputs(), 0.0)
    assert spy.seen == []


def test_running_neither_trains_nor_changes_the_mode():
    net = exits().train()
    net.segments[1].norm.eval()
    before = copy.deepcopy(net.state_dict())
    answer = net.run(inputs(), 0.5)
    net.frontier(inputs(), torch.zeros(40, dtype=torch.long))
    assert not answer.output.requires_grad
    assert net.training
    assert not net.segments[1].norm.training
    torch.testing.assert_close(net.state_dict(), before)


@pytest.mark.parametrize("thresholds", [0.0, 0.5, math.inf])
def test_an_empty_batch_gives_an_empty_answer(thresholds):
    answer = exits().run(inputs(0), thresholds)
    assert answer.output.shape == (0, CLASSES)
    assert answer.stage.shape == (0,)


def test_gradients_reach_every_head_and_all_of_the_trunk():
    net = exits()
    joint_loss(net(inputs()), torch.arange(40) % CLASSES).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("two.bias"):  # batch normalisation takes a shift out again
            assert float(parameter.grad.abs().sum()) > 1e-6, name


def test_one_exit_alone_trains_nothing_that_comes_after_it():
    net = exits()
    joint_loss(net(inputs()), torch.arange(40) % CLASSES, weights=[1, 0, 0]).backward()
    assert float(net.segments[0].one.weight.grad.abs().sum()) > 0
    for part in (net.segments[1], net.segments[2], net.heads[1]):
        assert all(float(p.grad.abs().sum()) == 0 for p in part.parameters())


def test_the_joint_loss_is_the_weighted_sum_of_cross_entropies():
    outputs = [torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    target = torch.arange(6) % 3
    parts = torch.stack([functional.cross_entropy(o, target) for o in outputs])
    torch.testing.assert_close(joint_loss(outputs, target), parts.sum())
    weights = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(joint_loss(outputs, target, [0.5, 2, 0]), (weights * parts).sum())
    assert torch.autograd.gradcheck(lambda *o: joint_loss(o, target, [0.5, 2, 1]), outputs)


def test_training_lowers_the_loss_of_every_exit():
    torch.manual_seed(0)
    net, x = exits(), inputs(200)
    y = (x.sum(dim=1) > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    before = [functional.cross_entropy(o, y).item() for o in net(x)]
    for _ in range(40):
        optimizer.zero_grad()
        joint_loss(net(x), y).backward()
        optimizer.step()
    after = [functional.cross_entropy(o, y).item() for o in net(x)]
    assert all(late < 0.5 * early for late, early in zip(after, before, strict=True))


def test_counted_costs_equal_the_count_by_hand():
    costs = exits().stage_costs(inputs(5))
    assert costs.advance.unit == costs.answer.unit == "MFLOPs"
    assert_allclose(costs.advance.amount, np.array([2 * 4 * 8, 2 * 8 * 6, 2 * 6 * 3]) / 1e6)
    assert_allclose(costs.answer.amount, np.array([2 * 8 * 3, 2 * 6 * 3, 0]) / 1e6)


def test_counted_costs_of_convolutions_equal_the_count_by_hand():
    net = EarlyExit(convnet(), [1, 2], example=torch.zeros(1, 1, 8, 8))
    costs = net.stage_costs(torch.zeros(3, 1, 8, 8))
    segments = [2 * 64 * 5 * 9, 2 * 16 * 7 * 5 * 9, 2 * 7 * 16 * 3]
    assert_allclose(costs.advance.amount, np.array(segments) / 1e6)
    assert_allclose(costs.answer.amount, np.array([2 * 5 * 3, 2 * 7 * 3, 0]) / 1e6)


def test_an_input_pays_for_every_segment_and_head_it_ran():
    net = exits()
    costs = net.stage_costs(inputs(1))
    answer = net.run(inputs(), [math.inf, 0.6])
    spent = answer.route.cost(costs.per_stage([math.inf, 0.6])).amount * 1e6
    middle, end = 64 + 96 + 36, 64 + 96 + 36 + 36
    expected = np.where(answer.stage.numpy() == 1, middle, end)
    assert_allclose(spent, expected)
    assert set(expected) == {middle, end}


def test_the_frontier_equals_a_run_at_each_knob():
    net, x = exits(torch.float64), inputs(600, torch.float64)  # more rows than one batch of work
    y = torch.randint(CLASSES, (600,), generator=torch.Generator().manual_seed(0))
    frontier = net.frontier(x, y, [math.inf, 0.8, 0.6, 0.0])
    outcomes = frontier.outcomes
    costs = net.stage_costs(x[:1])
    for at, knob in enumerate(outcomes.knobs):
        answer = net.run(x, knob)
        assert_array_equal(outcomes.quality[at], (answer.output.argmax(1) == y).numpy())
        assert_allclose(outcomes.cost[at], answer.route.cost(costs.per_stage(knob)).amount)
    right = (plain(net.backbone, x).argmax(1) == y).numpy()
    assert_array_equal(outcomes.reference_quality, right)
    assert_allclose(outcomes.reference_cost, (64 + 96 + 36) / 1e6)


def test_the_default_knobs_run_from_the_whole_backbone_to_the_first_exit():
    frontier = exits().frontier(inputs(), torch.zeros(40, dtype=torch.long))
    first, last = frontier.points[0], frontier.points[-1]
    assert first.cost == frontier.reference.cost
    assert first.quality == frontier.reference.quality
    assert last.cost == pytest.approx((64 + 48) / 1e6)
    costs = [point.cost for point in frontier.points[1:]]
    assert costs == sorted(costs, reverse=True)
    assert frontier.pick(max_drop=0.9).certificate.certified


def test_a_saved_network_answers_alike():
    net, other = exits(), exits()
    for parameter in other.parameters():
        nn.init.constant_(parameter, 0.1)
    other.load_state_dict(load(save(net.state_dict())))
    expected = net.run(inputs(), 0.6)
    answer = other.run(inputs(), 0.6)
    torch.testing.assert_close(answer.output, expected.output)
    assert answer.stage.tolist() == expected.stage.tolist()


def test_a_deep_copy_is_independent():
    net = exits()
    twin = copy.deepcopy(net)
    expected = net.run(inputs(), 0.6).output
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(twin.run(inputs(), 0.6).output, expected)


def test_own_heads_are_used():
    heads = [
        nn.Linear(8, CLASSES),
        nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES)),
    ]
    net = exits(heads=heads)
    assert list(net.heads) == heads
    features = net.segments[0](inputs())
    torch.testing.assert_close(net(inputs())[0], heads[0](features))


def test_nan_in_an_input_is_named():
    x = inputs()
    x[3, 0] = math.nan
    with pytest.raises(RouteError, match="NaN for input 3 at stage 0"):
        exits().run(x, 0.5)


class Branching(nn.Module):
    def forward(self, x):
        return x


def build(backbone=None, at=("act",), x=None, **options):
    backbone = mlp() if backbone is None else backbone
    return EarlyExit(backbone, at, example=inputs(2) if x is None else x, **options)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: build(at=["third"]), "no child 'third'.*one, act, two, norm, out"),
        (lambda: build(at=[5]), "no child 5.*0 to 4"),
        (lambda: build(at=[-6]), "no child -6"),
        (lambda: build(at=[True]), "no child True"),
        (lambda: build(at=["norm", "act"]), "'act' after 'norm'.*one, act, two"),
        (lambda: build(at=["act", 1]), "1 after 'act'"),
        (lambda: build(at=["act", "out"]), "'out' is the final exit already"),
        (lambda: build(at=[-1]), "'out' is the final exit already"),
        (lambda: build(at=[]), "at least one exit"),
        (lambda: build(at="act"), "a list of at least one exit"),
        (lambda: build(heads=[nn.Linear(8, 4)]), "3 classes.*'act' gives 4"),
        (lambda: build(heads=[nn.Linear(8, 3)] * 2), "1 exits need 1 heads, got 2"),
        (lambda: build(heads=[nn.Unflatten(1, (2, 4))]), r"head at 'act'.*\(2, 2, 4\)"),
        (lambda: build(Branching()), "Branching cannot be cut in two.*as a list"),
        (
            lambda: build(nn.ModuleDict({"a": nn.ReLU()})),
            "forward of its own, which ModuleDict has not",
        ),
        (lambda: build([nn.Linear(4, 3)], at=[0]), "at least two children, got 1"),
        (lambda: build([nn.ReLU(), torch.relu], at=[0]), "got builtin_function_or_method at 1"),
        (lambda: build([nn.ReLU(), nn.Unflatten(1, (2, 2))], at=[0]), r"like.*, \(2, 2, 2\)"),
        (lambda: build([nn.ReLU(), nn.Flatten(0)], at=[0]), "backbone must give logits"),
        (lambda: build(x=inputs(0)), "at least one input"),
        (lambda: build(x=[1.0]), "got list"),
        (lambda: exits().run(inputs(), [0.5]), "3 stages need 2 thresholds"),
        (lambda: exits().run(inputs(), [0.5] * 4), "3 stages need 2 thresholds"),
        (lambda: exits().run(inputs(), math.nan), "NaN"),
        (lambda: exits().stage_costs(inputs(0)), "at least one input"),
        (lambda: exits().frontier(inputs(), torch.full((40,), 3)), "0 to 2"),
        (lambda: exits().frontier(inputs(), torch.zeros(39)), r"\(39,\)"),
        (lambda: exits().frontier(inputs(), torch.zeros(40), [0.1, 0.9]), "highest threshold"),
        (lambda: exits().frontier(inputs(), torch.zeros(40), []), "at least one setting"),
        (lambda: joint_loss([], torch.zeros(2)), "0 exits"),
        (lambda: joint_loss([inputs(2)], torch.zeros(2), [1, 1]), "1 exits and 2 weights"),
        (lambda: joint_loss([inputs(2)], torch.zeros(2), [0]), "not all 0"),
        (lambda: joint_loss([inputs(2)], torch.zeros(2), [-1]), "at least 0"),
        (lambda: joint_loss([inputs(2)], torch.zeros(2), [math.nan]), "at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
