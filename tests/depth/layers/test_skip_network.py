import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.layers.network import PRICES, SkipNetwork, correct
from pointsman.depth.layers.routers import (
    FirstStateRouters,
    LayerRouters,
    WindowRouters,
    choose_runs,
)
from pointsman.errors import InputError


@pytest.fixture(params=[WindowRouters, FirstStateRouters])
def network(request, residual):
    torch.manual_seed(3)
    routers = request.param(4, 8, hidden=6, editable=[0, 2, 3])
    for weight in routers.parameters():
        torch.nn.init.normal_(weight)
    return SkipNetwork(residual(), routers.double()).eval()


def test_prices_lead_from_the_whole_network_to_the_least(network):
    x = torch.randn(50, 5).double()
    assert isinstance(network.routers, LayerRouters)
    whole = network.run(x, -math.inf)
    assert_close(whole.output, network.trunk(x), rtol=0, atol=0)
    assert bool((whole.runs == 1).all())
    assert network.run(x, math.inf).runs.unique(dim=0).tolist() == [[0, 1, 0, 0]]
    free = network.run(x, 0.0).runs
    assert len(free.unique(dim=0)) > 3  # inputs differ
    dearer = network.run(x, 1e9).runs
    assert torch.equal(dearer, network.run(x, math.inf).runs)
    assert torch.equal(network.run(x, -1e9).runs, whole.runs)


def test_a_dearer_run_is_never_chosen_more_often_from_the_same_scores():
    scores = torch.randn(200, 4)
    chosen = [choose_runs(scores, price) for price in (0.0, 0.3, 1.0, 3.0, math.inf)]
    assert all(bool((a >= b).all()) for a, b in pairwise(chosen))
    assert torch.equal(chosen[0], scores.argmax(dim=1))
    away = [choose_runs(scores, price) != 1 for price in (-math.inf, -3.0, -1.0, -0.3, 0.0)]
    assert all(bool((a <= b).all()) for a, b in pairwise(away))
    assert choose_runs(torch.zeros(2, 3), 0.0).tolist() == [2, 2]
    with pytest.raises(InputError, match="nan"):
        choose_runs(scores, math.nan)


def test_windows_are_averaged_apart_and_the_tail_is_left_out():
    routers = WindowRouters(1, 2, windows=2)
    features = torch.tensor([[[1.0, 0], [3, 0], [5, 0], [7, 0], [100, 100]]])
    assert_close(routers.pool(features), torch.tensor([[[2.0, 0], [6, 0]]]))
    image = features[:, :4].transpose(1, 2).reshape(1, 2, 2, 2)  # (n, D, height, width)
    assert_close(routers.pool(image.repeat(1, 1, 1, 3))[..., 1], torch.zeros(1, 2))
    assert routers.pool(features[:, 0]).shape == (1, 1, 2)  # fewer places than windows
    one = routers.scores(0, torch.tensor([[[2.0, 0]]]))
    two = routers.scores(0, torch.tensor([[[6.0, 0]]]))
    assert_close(routers.scores(0, routers.pool(features)), (one + two) / 2)
    with pytest.raises(InputError, match="width 2"):
        routers.pool(torch.zeros(1, 4, 3))


def test_an_input_decides_the_same_alone_and_in_company(network):
    x = torch.randn(9, 5).double()
    together = network.run(x)
    for at in range(9):
        alone = network.run(x[at : at + 1])
        assert torch.equal(alone.runs[0], together.runs[at])
        assert_close(alone.output[0], together.output[at])


def test_decisions_made_ahead_look_at_the_first_state_only(residual):
    torch.manual_seed(0)
    network = SkipNetwork(residual(), FirstStateRouters(4, 8).double())
    x = torch.randn(30, 5).double()
    before = network.run(x).runs
    torch.nn.init.normal_(network.trunk.inner[0][0].weight)
    assert torch.equal(before, network.run(x).runs)


def test_costs_count_the_routers_that_ran(network):
    x = torch.randn(6, 5).double()
    costs = network.layer_costs(x)
    trunk, runs = network.trunk, torch.ones(6, 4).long()
    plain = float(count_flops(trunk, x)) / 6
    assert float(costs.whole) == pytest.approx(plain)
    assert costs.of(runs).amount == pytest.approx(plain + float(costs.deciding))
    # everything that one call with routers computes, where no input leaves the whole path
    with torch.no_grad():
        for name, weight in network.routers.named_parameters():
            weight.fill_(0.0)
            if name.endswith("2.bias"):
                weight.unflatten(0, (-1, 3))[:, 1] = 9.0
    real = float(count_flops(lambda batch: network(batch, 0.0), x)) / 6
    assert real == pytest.approx(plain + float(costs.deciding))


def test_outcomes_hold_every_price_against_the_trained_network(network):
    x = torch.randn(300, 5).double()  # more than one batch
    y = network.trunk(x).argmax(dim=1)
    found = network.outcomes(x, y, PRICES)
    assert found.reference_quality.tolist() == [1.0] * 300
    assert found.quality[0].tolist() == [1.0] * 300
    np.testing.assert_allclose(found.cost[0], found.reference_cost)
    costs = network.layer_costs(x[:1])
    at = PRICES.index(0.0)
    runs = network.run(x, 0.0).runs
    np.testing.assert_allclose(found.cost[at], costs.of(runs).amount)
    right = correct(network.run(x, 0.0).output, y)
    np.testing.assert_array_equal(found.quality[at], right)
    frontier = network.frontier(x, y)
    assert frontier.points[0].quality == 1.0
    with pytest.raises(InputError, match="prices rise"):
        network.outcomes(x, y, [0.0, -1.0])
    with pytest.raises(InputError, match="at least one input"):
        network.outcomes(x[:0], y[:0])


def test_weights_are_saved_and_loaded_and_sizes_must_fit(network, residual):
    other = SkipNetwork(residual(seed=5), type(network.routers)(4, 8, hidden=6, editable=[0, 2, 3]))
    other.double().load_state_dict(network.state_dict())
    x = torch.randn(7, 5).double()
    assert_close(other.run(x).output, network.run(x).output, rtol=0, atol=0)
    assert network.run(x[:0]).output.shape == (0, 3)
    with pytest.raises(InputError, match="has 4 blocks, the routers are for 5"):
        SkipNetwork(residual(), WindowRouters(5, 8))
    with pytest.raises(InputError, match="actions 1"):
        WindowRouters(4, 8, actions=1)


def test_correct_is_the_share_of_right_places():
    logits = torch.eye(3)[None].repeat(2, 1, 1)
    assert correct(logits, torch.tensor([[0, 1, 2], [0, 0, 0]])).tolist() == pytest.approx(
        [1, 1 / 3]
    )
    assert correct(logits[0], torch.tensor([0, 1, 1])).tolist() == [1, 1, 0]
