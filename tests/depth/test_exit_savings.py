"""FLOPs and time beside each other, and exits under a stopping rule."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import Cost, Latency
from pointsman.depth import EarlyExit
from pointsman.depth.measuring import Savings
from pointsman.errors import InputError
from pointsman.frontier import Outcomes
from pointsman.run import StoppingRule


def exits():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    return EarlyExit(backbone, [0, 1], example=torch.randn(2, 4))


X = 3 * torch.randn(40, 4, generator=torch.Generator().manual_seed(1))


class Agreement:
    """How many answers in a row were the same."""

    def sureness(self, logits, stage, memory):
        answer = logits.argmax(dim=1)
        if memory is None:
            count = torch.zeros(len(answer))
        else:
            before, held = memory
            count = torch.where(before == answer, held + 1, torch.zeros_like(held))
        return count, (answer, count)


def test_savings_are_those_of_the_run():
    net = exits()
    found = net.measure(X, 0.6, warmup=1, repeats=2)
    answer = net.run(X, 0.6)
    paid = answer.route.cost(net.stage_costs(X).per_stage(0.6)).mean()
    assert float(found.flops) == pytest.approx(float(paid))
    assert found.answered == tuple(answer.stage.bincount(minlength=3).tolist())
    assert float(found.whole_flops) == pytest.approx(2e-6 * (32 + 64 + 64 + 24))
    assert found.flops_saved == pytest.approx(1 - float(paid) / float(found.whole_flops))
    assert float(found.time.median) > 0
    assert "saved" in found.words()


def test_shares_saved_are_read_off_costs_and_medians():
    def latency(ms):
        return Latency.from_seconds([ms / 1e3] * 3)

    found = Savings(Cost(2.0, "MFLOPs"), Cost(8.0, "MFLOPs"), latency(4), latency(10), (1, 2))
    assert found.flops_saved == pytest.approx(0.75)
    assert found.time_saved == pytest.approx(0.6)
    assert found.realised == pytest.approx(0.8)
    worse = Savings(Cost(9.0, "MFLOPs"), Cost(8.0, "MFLOPs"), latency(4), latency(10), (3,))
    assert math.isnan(worse.realised)


def test_measuring_needs_an_input_and_changes_no_mode():
    net = exits().train()
    net.measure(X, 0.6, warmup=0, repeats=1)
    assert net.training
    with pytest.raises(InputError, match="at least one input"):
        net.measure(X[:0], 0.6)


def test_a_rule_that_remembers_decides_who_leaves():
    net, rule = exits().eval(), Agreement()
    assert isinstance(rule, StoppingRule)
    logits = net.logits(X)
    said = logits.argmax(dim=2)
    answer = net.run(X, 1.0, rule)
    expected = torch.where(said[0] == said[1], 1, 2)
    assert answer.stage.tolist() == expected.tolist()
    assert_close(answer.output, logits[expected, torch.arange(40)])


def test_the_frontier_of_a_rule_equals_a_run_at_each_knob():
    net, rule = exits().double(), Agreement()
    x, y = X.double(), torch.arange(40) % 3
    outcomes = net.frontier(x, y, [math.inf, 2.0, 1.0, 0.0], confidence=rule).outcomes
    assert isinstance(outcomes, Outcomes)
    for at, knob in enumerate(outcomes.knobs):
        answer = net.run(x, knob, rule)
        right = (answer.output.argmax(dim=1) == y).tolist()
        assert outcomes.quality[at].astype(bool).tolist() == right


def test_logits_of_all_exits_come_in_the_order_of_the_inputs():
    net = exits().eval()
    assert_close(net.logits(X), torch.stack(net(X)))
    assert net.logits(X).requires_grad is False
