"""Exits placed by cost, and what blocks cost."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from pointsman.cost import flops_per_input
from pointsman.depth import EarlyExit
from pointsman.depth.decoder import Decoder
from pointsman.depth.placing import block_costs, by_cost
from pointsman.depth.trunks import trunk_of
from pointsman.errors import InputError

X = torch.randn(3, 4)


def network():
    """Blocks of 32, 0, 64, 64 and 24 multiplications: together 184."""
    return nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    )


def test_blocks_cost_what_the_network_costs():
    costs = block_costs(trunk_of(network(), X), X)
    assert costs.unit == "MFLOPs"
    assert_allclose(costs.amount, 2e-6 * np.array([32, 0, 64, 64, 24]))


def test_what_comes_before_and_after_the_blocks_is_paid_with_the_first_and_the_last():
    net = Decoder(vocabulary=11, width=8, layers=3, heads=2, context=12)
    ids = torch.randint(11, (2, 5))
    costs = block_costs(net, ids)
    assert costs.amount.sum() == pytest.approx(float(flops_per_input(net, ids)))
    assert costs.amount[2] - costs.amount[1] == pytest.approx(2e-6 * 5 * 8 * 11)


@pytest.mark.parametrize(
    ("shares", "names"),
    [([0.2], "0"), ([0.5], "2"), ([0.2, 0.9], "03"), ([0.05, 0.45, 0.95], "023")],
)
def test_an_exit_lies_where_about_its_share_is_spent(shares, names):
    assert by_cost(network(), X, shares) == list(names)


def test_exits_at_even_steps_of_cost():
    assert by_cost(network(), X, exits=1) == ["2"]
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    assert by_cost(net, X, exits=3) == ["1", "3", "5"]
    exits = EarlyExit(net, by_cost(net, X, exits=3), example=X)
    spent = np.cumsum(exits.stage_costs(X).advance.amount)
    assert_allclose(spent / spent[-1], [0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: by_cost(network(), X), "give one of both"),
        (lambda: by_cost(network(), X, [0.5], exits=2), "give one of both"),
        (lambda: by_cost(network(), X, []), "at least one of them"),
        (lambda: by_cost(network(), X, exits=0), "at least one of them"),
        (lambda: by_cost(network(), X, [0.5, 0.25]), r"ascend.*\[0.5, 0.25\]"),
        (lambda: by_cost(network(), X, [0.5, 1.0]), "between 0 and 1"),
        (lambda: by_cost(network(), X, [0.5, 0.55]), "0.5 and 0.55 are both nearest.*'2'.*0.17"),
        (lambda: by_cost(nn.Sequential(nn.ReLU(), nn.ReLU()), X, [0.5]), "name the exits"),
        (lambda: by_cost(network(), X[:0], [0.5]), "at least one input"),
    ],
)
def test_shares_that_do_not_fit_are_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
