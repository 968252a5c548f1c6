"""JEI-DNN: targets and losses by hand, a trunk that stays, and gates that follow the price."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.depth import EarlyExit
from pointsman.depth.fitting import Batches, Recipe
from pointsman.depth.gating import _spent, exit_target, jei_dnn, shared_loss
from pointsman.depth.stopping import LearnedGate
from pointsman.depth.training import train_back_to_front
from pointsman.errors import InputError
from pointsman.run import StageCosts

CLASSES = 3


def data(seed, inputs=512):
    """Two classes are told apart by a sign; whether it is the third takes a product."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(inputs, 5, generator=generator)
    hard = torch.rand(inputs, generator=generator) < 0.4
    x[:, 4] = torch.where(hard, 0.0, 3 * x[:, 4].sign())
    y = torch.where(hard, (x[:, 0] * x[:, 1] > 0).long(), 1 + (x[:, 4] > 0).long())
    return x, y


class Product(nn.Module):
    """Adds the sign of the first two coordinates' product, which no linear head can read off."""

    def forward(self, x):
        return torch.cat([x, (x[:, :1] * x[:, 1:2]).sign()], dim=1)


def network(seed=0):
    torch.manual_seed(seed)
    backbone = [nn.BatchNorm1d(5, affine=False), Product(), nn.Linear(6, CLASSES)]
    return EarlyExit(backbone, [0, 1], example=torch.zeros(2, 5))


def batches(seed=1, inputs=512):
    return Batches(*data(seed, inputs), 64, seed=seed)


@pytest.fixture(scope="module")
def trained():
    net = network()
    train_back_to_front(net, batches(), Recipe(epochs=8, rate=5e-2), heads=Recipe(epochs=1))
    return net


def test_the_target_opens_gates_from_the_cheapest_good_exit_on():
    losses = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.2, 0.1], [0.9, 0.6, 0.1]])
    spent = torch.tensor([0.2, 0.6, 1.0])
    assert exit_target(losses, spent, 0.0).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert exit_target(losses, spent, 0.5).tolist() == [[1, 1], [0, 1], [0, 0]]
    assert exit_target(losses, spent, 1e3).tolist() == [[1, 1], [1, 1], [1, 1]]


def test_the_heads_loss_has_the_size_of_the_plain_sum_and_the_shares_direction():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    shares = torch.rand(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = shared_loss(losses, shares)
    assert_close(loss, losses.sum(dim=1).mean())
    loss.backward()
    assert shares.grad is None
    plain = losses.detach()
    scale = plain.sum(dim=1) / (shares.detach() * plain).sum(dim=1)
    assert_close(losses.grad, shares.detach() * scale[:, None] / 6)


def test_an_input_that_leaves_nowhere_early_adds_nothing_and_no_nan():
    losses = torch.rand(2, 2, requires_grad=True)
    shared_loss(losses, torch.tensor([[0.0, 0.0], [0.5, 0.0]])).backward()
    assert losses.grad[0].tolist() == [0, 0]
    assert bool(losses.grad.isfinite().all())


def run(trained, price, **options):
    net = copy.deepcopy(trained)
    gates = jei_dnn(
        net,
        batches(),
        batches(2, 256),
        price=price,
        warm_up=Recipe(epochs=6, rate=5e-2),
        recipe=Recipe(epochs=8, rate=5e-2),
        turn=8,
        **options,
    )
    return net, gates


def test_the_trunk_and_the_mode_stay_and_heads_and_gates_learn(trained):
    net, gates = run(trained.train(), 0.3)
    assert net.training
    assert not gates.training
    assert_close(net.trunk.state_dict(), trained.trunk.state_dict(), rtol=0, atol=0)
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert not torch.equal(net.heads[0].linear.weight, trained.heads[0].linear.weight)
    assert float(gates.weight.detach().abs().min()) > 0


def test_a_higher_price_lets_inputs_leave_earlier(trained):
    x, _ = data(3, 1000)
    stages = [run(trained, price)[:2] for price in (0.0, 0.3, 50.0)]
    depth = [float(net.run(x, 0.5, gates).stage.double().mean()) for net, gates in stages]
    assert depth[0] >= depth[1] > depth[2] == 0


def test_easy_inputs_leave_and_hard_ones_go_on(trained):
    net, gates = run(trained, 0.3)
    x, y = data(3, 2000)
    answer = net.run(x, 0.5, gates)
    hard = x[:, 4] == 0
    deep, shallow = (answer.stage[some].double().mean() for some in (hard, ~hard))
    assert float(deep) > 0.3 + float(shallow)
    whole = (net.logits(x)[-1].argmax(dim=1) == y).double().mean()
    assert float((answer.output.argmax(dim=1) == y).double().mean()) > float(whole) - 0.05


def test_what_is_spent_counts_heads_and_the_last_exit_as_one():
    costs = StageCosts(Cost(np.array([1.0, 1, 1]), "x"), Cost(np.array([2.0, 0, 5]), "x"))
    assert_close(_spent(costs, 3, LearnedGate(2)), torch.tensor([0.3, 0.4, 1.0]))


def test_a_gate_opens_for_the_inputs_that_its_exit_can_answer(trained):
    net, gates = run(trained, 0.3)
    x, _ = data(4, 1500)
    first, second = gates.scores(net.logits(x)).detach().unbind(dim=1)
    hard = x[:, 4] == 0
    assert float(first[hard].mean()) < 0 < float(first[~hard].mean())
    assert float(second.mean()) > 0  # nearly nobody need go on from there


def test_it_works_in_double_precision_too(trained):
    net = copy.deepcopy(trained).double()
    x, y = data(1, 128)
    doubled = [(x.double(), y)]
    gates = jei_dnn(net, doubled, doubled, price=0.1, recipe=Recipe(epochs=2), turn=1)
    assert gates.weight.dtype == torch.float64
    assert isinstance(gates, LearnedGate)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"price": -1.0}, "price is at least 0"),
        ({"price": float("nan")}, "price is at least 0"),
        ({"price": 1.0, "turn": 0}, "turn at least 1"),
        (
            {"price": 1.0, "costs": StageCosts.of(Cost(np.ones(2), "x"))},
            "3 exits need a cost each, got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(trained, options, text):
    with pytest.raises(InputError, match=text) as caught:
        jei_dnn(copy.deepcopy(trained), batches(), batches(2), **options)
    assert "\n" not in str(caught.value)


def test_validation_that_runs_out_is_refused(trained):
    with pytest.raises(InputError, match="no batch"):
        jei_dnn(
            copy.deepcopy(trained), batches(), iter(batches(2)), price=1.0, turn=2,
            recipe=Recipe(epochs=1),
        )  # fmt: skip
