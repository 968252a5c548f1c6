"""Thresholds on what larger options add: exact at both ends, and trained through the step."""

import pytest
import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.elastic import Kernel, NamedWidth
from pointsman.supernet.making import make_elastic
from pointsman.supernet.relax.thresholds import Thresholds, expected_cost
from pointsman.supernet.supernet import Supernet

DECIDES = {"hidden.width": "0.weight", "0.kernel": "0.weight"}
X = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0))


def network() -> Supernet:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(2, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 3, 1, bias=False), nn.Flatten(2)
    )
    width = NamedWidth("hidden", ["0"], ["2"], counts=(2, 4, 6))
    return make_elastic(body, None, [width, Kernel("0", (1, 3, 5))])


def test_everything_is_on_at_first_and_the_network_is_whole() -> None:
    net = network()
    whole = net(X)
    shares = Thresholds(net, DECIDES).mix()
    torch.testing.assert_close(net(X), whole)
    torch.testing.assert_close(shares["hidden.width"], torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("off", [1, 2])
def test_an_option_that_is_off_takes_larger_ones_with_it(off: int) -> None:
    net = network()
    thresholds = Thresholds(net, DECIDES)
    for levels in thresholds.levels:
        levels.data[off] = 3.0
    thresholds.mix()
    mixed = net(X)
    derived = thresholds.derive()
    assert derived == {"hidden.width": (2, 4)[off - 1], "0.kernel": (1, 3)[off - 1]}
    torch.testing.assert_close(mixed, net.extract(net.space.encode(derived))(X))


def test_what_may_be_dropped_gives_nothing() -> None:
    net = network()
    thresholds = Thresholds(net, DECIDES, droppable=["hidden.width"])
    for levels in thresholds.levels:
        levels.data[0] = 3.0  # the kernel's first option stays all the same
    thresholds.mix()
    assert not net(X).any()
    assert thresholds.derive() == {"hidden.width": None, "0.kernel": 5}


def test_a_cost_is_exact_and_pushes_thresholds_up() -> None:
    net = network()
    thresholds = Thresholds(net, DECIDES)
    table = torch.arange(9.0).view(3, 3)
    cost = expected_cost(thresholds.mix(), {tuple(DECIDES): table}, fixed=10.0)
    torch.testing.assert_close(cost, torch.tensor(18.0))
    cost.backward()
    for levels in thresholds.levels:
        assert levels.grad is not None
        assert (levels.grad[1:] < 0).all()
        assert levels.grad[0] == 0


def test_weights_that_shrink_are_switched_off() -> None:
    net = network()
    thresholds = Thresholds(net, DECIDES)
    with torch.no_grad():
        net.get_parameter("body.body.0.weight")[4:] *= 0.1
    assert thresholds.derive()["hidden.width"] == 4


@pytest.mark.parametrize(
    ("decides", "what"),
    [
        ({"nothing": "0.weight"}, "got 'nothing'"),
        ({"hidden.width": "0.bias", "0.kernel": "0.bias"}, "'0.bias' decides '0.kernel'"),
    ],
)
def test_names_that_do_not_fit_are_refused(decides: dict[str, str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Thresholds(network(), decides)
