"""Pruning reaches its goal in one call, by any criterion, and says what it did."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from pointsman.cost import Latency, count_flops
from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.channels import channel_groups
from pointsman.supernet.pruning import (
    activation,
    at_random,
    batch_norm_scale,
    latency,
    macs,
    magnitude,
    parameters,
    prune,
    taylor,
)

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1])


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 5),
    ).eval()


def loss(model: nn.Module) -> torch.Tensor:
    return functional.cross_entropy(model(X), Y)


CRITERIA = {
    "L1": magnitude(1),
    "L2": magnitude(2),
    "Taylor": taylor(loss),
    "random": at_random(1),
    "scale": batch_norm_scale(),
    "activation": activation(X),
    "own": lambda model, groups: {g: torch.arange(float(g.size)) for g in groups},
}


@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_every_criterion_reaches_half_of_the_macs_and_not_much_less(criterion):
    model = convnet()
    small, report = prune(model, X, to=0.5, criterion=criterion)
    assert 0.4 < report.reached <= 0.5
    assert float(count_flops(small, X)) / 2 == pytest.approx(report.macs[1])
    assert report.widths["0"] == (16, small[0].out_channels)
    assert model[0].out_channels == 16
    assert small(X).shape == (2, 5)


def test_every_group_loses_the_same_share_if_they_do_not_compete():
    _, report = prune(convnet(), X, to=0.5, across=False)
    kept = [after / before for before, after in report.widths.values()]
    assert max(kept) - min(kept) < 0.1


def test_goals_in_parameters_and_in_measured_latency(monkeypatch):
    _, report = prune(convnet(), X, to=0.3, of=parameters)
    assert report.parameters[1] / report.parameters[0] == report.reached <= 0.3
    assert "times as fast on this device" in str(report)
    assert f"ms of {report.clock} time per call" in str(report)
    low, high = (f"{float(q):.3g}" for q in (report.latency[0].low, report.latency[0].high))
    assert f"[{low} to {high}] → " in str(report)
    fake = iter([0.2, *([0.9, 0.4] * 20)])  # a device whose times jump
    _, report = prune(convnet(), X, to=0.5, of=lambda small, whole, example: next(fake))
    _, report = prune(convnet(), X, to=0.99, of=lambda *_: 0.9)
    assert report.speed_up > 0  # as measured here

    def latencies(whole, small, example):  # a device whose time goes with the parameters
        sizes = {"before": size(whole), "after": size(small)}
        return {name: Latency.from_seconds([each]) for name, each in sizes.items()}

    def size(model):
        return sum(weight.numel() for weight in model.parameters())

    monkeypatch.setattr(sys.modules[prune.__module__], "_latencies", latencies)
    _, report = prune(convnet(), X, to=0.6, of=latency)
    assert report.reached <= 0.6
    assert report.speed_up == pytest.approx(1 / report.reached)


def test_widths_come_in_multiples_and_not_below_the_least():
    small, _ = prune(convnet(), X, to=0.4, multiple=8)
    assert small[0].out_channels % 8 == small[3].out_channels % 8 == 0
    small, _ = prune(convnet(), X, to=0.2, least=5)
    assert min(small[0].out_channels, small[3].out_channels) >= 5


def test_importance_is_computed_anew_in_rounds():
    asked = []

    def criterion(model, groups):
        asked.append(sum(group.size for group in groups))
        return magnitude()(model, groups)

    _, report = prune(convnet(), X, to=0.25, criterion=criterion, rounds=3)
    assert len(asked) == 3
    assert asked[0] > asked[1] > asked[2]
    assert report.reached <= 0.25
    assert report.widths["3"][0] == 24


def test_units_that_do_nothing_go_first_and_leave_no_trace():
    model = convnet()
    with torch.no_grad():
        for part in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            part[4:12] = 0
        model[3].weight[:, 4:12] = 0
    small, report = prune(model, X, to=0.6, only=lambda group: group.name == "0")
    assert report.widths == {"0": (16, small[0].out_channels)}
    torch.testing.assert_close(small(X), model(X))


def test_taylor_leaves_gradients_alone_and_equals_weight_times_gradient():
    model = convnet()
    groups = channel_groups(model, X)
    found = taylor(loss)(model, groups)[groups[1]]
    assert all(parameter.grad is None for parameter in model.parameters())
    loss(model).backward()
    parts = [(model[3].weight, 0), (model[3].bias, 0), (model[4].weight, 0), (model[4].bias, 0)]
    by_hand = sum((w * w.grad).flatten(1).sum(1) if w.dim() > 1 else w * w.grad for w, _ in parts)
    columns = (model[8].weight * model[8].weight.grad).sum(0).reshape(24, 4).sum(1)
    torch.testing.assert_close(found, (by_hand + columns).abs().detach())


def test_goals_out_of_reach_and_bad_input_are_said():
    with pytest.raises(UnreachableError, match=r"pruning reaches .* at least, asked for 0.001"):
        prune(convnet(), X, to=0.001)
    with pytest.raises(InputError, match="a share of the whole network"):
        prune(convnet(), X, to=50)
    with pytest.raises(InputError, match="no group of units"):
        prune(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), X, to=0.5)
    with pytest.raises(InputError, match="16 finite scores for '0'"):
        prune(
            convnet(),
            X,
            to=0.5,
            criterion=lambda model, groups: {g: torch.full((g.size,), torch.nan) for g in groups},
        )
    norm_free = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(InputError, match="'0' has none"):
        prune(norm_free, X, to=0.5, of=macs, criterion=batch_norm_scale())
