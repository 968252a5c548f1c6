"""Subnets as a frontier, from which a pick is certified."""

import numpy as np
import pytest
import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.certified import genotype_of, is_right, knob_of, subnet_frontier
from pointsman.supernet.costs import count_mflops
from pointsman.supernet.elastic import NamedWidth
from pointsman.supernet.making import make_elastic
from pointsman.supernet.supernet import Supernet

X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))


def network() -> Supernet:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return make_elastic(body, None, [NamedWidth("0", ["0", "1"], ["3"], counts=(1, 4, 8))])


def test_every_input_is_judged_by_every_subnet_dearest_first() -> None:
    net = network()
    whole = net.extract((2,)).eval()(X)
    y = whole.argmax(dim=1)
    cost = count_mflops(net, X[:1])
    frontier = subnet_frontier(net, [(0,), (2,), (1,), (0,)], X, y, cost)
    outcomes = frontier.outcomes
    assert outcomes is not None
    assert outcomes.knobs == ("2", "1", "0")
    assert outcomes.unit == "MFLOPs"
    np.testing.assert_array_equal(outcomes.reference_quality, 1)
    for knob, quality, price in zip(outcomes.knobs, outcomes.quality, outcomes.cost, strict=True):
        genotype = genotype_of(str(knob))
        right = is_right(net.extract(genotype).eval()(X), y)
        np.testing.assert_array_equal(quality, right.numpy())
        assert (price == cost(genotype)).all()
    pick = frontier.pick(max_drop=0.05, confidence=0.9)
    assert pick.knob == "2"


def test_batch_statistics_are_those_of_each_subnet() -> None:
    net = network()
    y = torch.zeros(len(X), dtype=torch.long)
    cost = count_mflops(net, X[:1])
    stale = subnet_frontier(net, [(0,)], X, y, cost, quality=lambda out, y: out[:, 0].sigmoid())
    fresh = subnet_frontier(
        net, [(0,)], X, y, cost, quality=lambda out, y: out[:, 0].sigmoid(), batches=[X + 3]
    )
    assert stale.outcomes is not None
    assert fresh.outcomes is not None
    assert not np.allclose(stale.outcomes.quality, fresh.outcomes.quality)
    assert net.in_force == (2,)


def test_a_knob_is_read_back_and_others_are_refused() -> None:
    assert genotype_of(knob_of((2, 0, 11))) == (2, 0, 11)
    with pytest.raises(InputError, match="got 'whole'"):
        genotype_of("whole")
    net = network()
    with pytest.raises(InputError, match="at least one subnet"):
        subnet_frontier(net, [], X, torch.zeros(len(X)), count_mflops(net, X[:1]))
