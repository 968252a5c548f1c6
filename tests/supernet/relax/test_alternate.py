"""Loops of relaxed search: on a toy with known ends, and on a network small enough to watch."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.relax import (
    GumbelGate,
    Node,
    Relaxation,
    alternate,
    architecture_gradients,
    first_order,
    select_by_perturbation,
    two_copies,
    two_copies_step,
    unrolled,
)
from pointsman.supernet.supernet import Supernet


class Weight(nn.Module):
    """One number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.value


def toy(alpha: Tensor):
    """The losses of a published toy problem, whose best architecture is alpha = 1."""

    def training(net: nn.Module) -> Tensor:
        w = net()
        return w**2 - 2 * alpha * w + alpha**2

    def validation(net: nn.Module) -> Tensor:
        return alpha * net() - 2 * alpha + 1

    return training, validation


@pytest.mark.parametrize(("gradient", "end"), [(first_order, 2.0), (unrolled(0.5), 1.0)])
def test_on_the_toy_first_order_goes_wrong_and_the_unrolled_gradient_goes_right(gradient, end):
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    net = Weight(-2.0)
    training, validation = toy(alpha)
    for _ in range(200):
        (slope,) = gradient(net, [alpha], training, validation)
        with torch.no_grad():
            alpha -= 0.1 * slope
        (down,) = torch.autograd.grad(training(net), [net.value])
        with torch.no_grad():
            net.value -= 0.25 * down
    assert float(alpha.detach()) == pytest.approx(end, abs=0.02)


def test_on_the_toy_two_copies_end_where_they_should():
    weight, pull = 1.0, 10.0
    alpha = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    y, w = Weight(-2.0), Weight(-2.0)
    training, validation = toy(alpha)
    of_w, of_y = (torch.optim.SGD(net.parameters(), 0.08) for net in (w, y))
    optimisers = of_w, of_y, torch.optim.SGD([alpha], 0.3)
    for _ in range(200):
        two_copies_step(
            y, w, [alpha], training, validation, optimisers, training_weight=weight, pull=pull
        )
    end = 2 / (2 - 1 / (2 * weight) - 1 / pull)
    assert float(alpha.detach()) == pytest.approx(end, abs=0.02)


class Scale(nn.Module):
    """Times a fixed factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def network() -> Supernet:
    """What is best: the first place at 2, the second at 1, and then a weight of 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        linear.weight.fill_(0.9)
    return Supernet(
        nn.Sequential(
            OneOf("first", {"none": Scale(0.0), "one": Scale(1.0), "two": Scale(2.0)}),
            linear,
            OneOf("second", {"none": Scale(0.0), "one": Scale(1.0), "less": Scale(-1.0)}),
        )
    )


X = torch.linspace(-1, 1, 16)[:, None]


def loss(net: nn.Module, batch: Tensor) -> Tensor:
    error: Tensor = (net(batch) - 2 * batch).square().mean()
    return error


def optimisers(net: Supernet, relaxation: Relaxation):
    return {
        "weights": torch.optim.SGD(net.parameters(), 0.01),
        "architecture": torch.optim.Adam(relaxation.parameters(), 0.1),
    }


@pytest.mark.parametrize("gradient", [first_order, unrolled(0.01)])
def test_the_loop_finds_the_options_that_fit(gradient):
    net = network()
    relaxation = Relaxation(net, never=["none"])
    alternate(
        net,
        relaxation,
        loss,
        [X],
        [X],
        updates=40,
        gradient=gradient,
        **optimisers(net, relaxation),
    )
    assert net.space.decode(relaxation.derive()) == {"first": "two", "second": "one"}
    assert not net.training
    assert all(dial.mixture is None for dial in net.dials)


def test_random_gates_with_several_draws_repeat_with_their_seed():
    found = []
    for seed in (5, 5, 6):
        net = network()
        relaxation = Relaxation(net, gate=GumbelGate(2, 0.5))
        ways = optimisers(net, relaxation)
        alternate(net, relaxation, loss, [X], [X], updates=3, draws=2, seed=seed, **ways)
        found.append(torch.cat([parameter.detach() for parameter in relaxation.alpha]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_weights_see_only_training_data_and_the_architecture_waits_for_its_turn():
    net, seen = network(), []
    relaxation = Relaxation(net)
    before = [parameter.detach().clone() for parameter in relaxation.alpha]
    ways = optimisers(net, relaxation)

    def watched(net: nn.Module, batch: tuple[str, Tensor]) -> Tensor:
        seen.append(batch[0])
        return loss(net, batch[1])

    updates = []
    halves = [("training", X)], [("validation", X)]
    alternate(net, relaxation, watched, *halves, updates=4, warm_up=4, after=updates.append, **ways)
    assert seen == ["training"] * 4
    assert updates == [1, 2, 3, 4]
    for parameter, old in zip(relaxation.alpha, before, strict=True):
        assert torch.equal(parameter, old)
    weight = net.body[1].weight.detach().clone()
    ways["weights"] = torch.optim.SGD(net.parameters(), 0.0)
    seen.clear()
    alternate(net, relaxation, watched, *halves, updates=2, **ways)
    assert seen == ["validation", "training"] * 2
    assert torch.equal(net.body[1].weight, weight)
    assert not torch.equal(relaxation.alpha[0], before[0])


def test_a_penalty_moves_the_architecture():
    net = network()
    relaxation = Relaxation(net)
    alternate(
        net,
        relaxation,
        loss,
        [X],
        [X],
        updates=40,
        penalty=lambda r: 100 * r.alpha[0].softmax(dim=0)[2],
        **optimisers(net, relaxation),
    )
    assert net.space.decode(relaxation.derive())["first"] != "two"


def test_gradients_over_draws_are_means():
    net = network()
    relaxation = Relaxation(net)

    def on(network: nn.Module) -> Tensor:
        return loss(network, X)

    once = architecture_gradients(net, relaxation, on, on)
    thrice = architecture_gradients(net, relaxation, on, on, draws=3)
    assert_close(once, thrice)
    with pytest.raises(InputError, match="at least one draw"):
        architecture_gradients(net, relaxation, on, on, draws=0)


def test_two_copies_find_the_options_that_fit():
    net = network()
    relaxation = Relaxation(net, never=["none"])
    two_copies(
        net,
        relaxation,
        loss,
        [X],
        [X],
        updates=40,
        weights=lambda parameters: torch.optim.SGD(parameters, 0.01),
        architecture=torch.optim.Adam(relaxation.parameters(), 0.1),
    )
    assert net.space.decode(relaxation.derive()) == {"first": "two", "second": "one"}
    with pytest.raises(InputError, match="training loss weighs"):
        two_copies(
            net,
            relaxation,
            loss,
            [X],
            [X],
            updates=1,
            weights=torch.optim.Adam,
            architecture=torch.optim.Adam(relaxation.parameters()),
            training_weight=0.0,
        )


def test_data_that_is_used_up_is_named():
    net = network()
    relaxation = Relaxation(net)
    with pytest.raises(InputError, match="no batch"):
        alternate(net, relaxation, loss, iter([X]), [X], updates=3, **optimisers(net, relaxation))


def planted(values: dict[str, dict[str, float]]):
    """A score that adds up what options are worth, as far as their weight is not 0."""

    def score(net: Supernet) -> float:
        total = 0.0
        for dial in net.dials:
            assert dial.mixture is not None
            for option, weight in zip(dial.choice.options, dial.mixture.tolist(), strict=True):
                total += values[dial.choice.name][option] * (weight > 1e-6)
        return total

    return score


def test_perturbation_picks_the_best_option_whatever_its_weight():
    values = {
        "first": {"none": 0.0, "one": 3.0, "two": 1.0},
        "second": {"none": 9.0, "one": 1.0, "less": 2.0},
    }
    for seed in range(2):
        net = network()
        relaxation = Relaxation(net, spread=2.0, never=["none"], seed=seed)
        tuned: list[Supernet] = []
        found = select_by_perturbation(
            net, relaxation, planted(values), tune=tuned.append, seed=seed
        )
        assert net.space.decode(found) == {"first": "one", "second": "less"}
        assert len(tuned) == 2
        assert all(dial.mixture is None for dial in net.dials)


def test_perturbation_keeps_the_edges_that_matter():
    values = {
        "first": {"none": 0.0, "one": 1.0, "two": 0.5},
        "second": {"none": 0.0, "one": 2.0, "less": 1.0},
    }
    net = network()
    relaxation = Relaxation(net, nodes=[Node(("first", "second"), keep=1)], never=["none"])
    found = select_by_perturbation(net, relaxation, planted(values))
    assert net.space.decode(found) == {"first": "none", "second": "one"}
