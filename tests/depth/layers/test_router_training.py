import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.layers.execute import run_paths
from pointsman.depth.layers.gap import skip_gap
from pointsman.depth.layers.network import SkipNetwork
from pointsman.depth.layers.paths import enumerate_paths
from pointsman.depth.layers.routers import FirstStateRouters, WindowRouters
from pointsman.depth.layers.search import every_path
from pointsman.depth.layers.training import (
    fit_routers,
    pooled_states,
    rising,
    skipping_logits,
)
from pointsman.errors import InputError


def labelled(inputs):
    """Inputs and a path that can be read off their first entry."""
    x = torch.randn(inputs, 5).double()
    runs = torch.ones(inputs, 4, dtype=torch.int64)
    runs[x[:, 0] > 0, 1] = 0
    runs[x[:, 0] > 1, 3] = 2
    return x, runs


@pytest.mark.parametrize("kind", [WindowRouters, FirstStateRouters])
@pytest.mark.parametrize("rounds", [1, 2])
def test_routers_learn_paths_that_can_be_read_off_the_input(residual, kind, rounds):
    torch.manual_seed(0)
    network = SkipNetwork(residual(), kind(4, 8, hidden=16).double())
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    fit_routers(network, *labelled(400), updates=60, batch=64, rate=2e-2, rounds=rounds)
    for name, value in network.trunk.state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    x, runs = labelled(300)
    chosen = network.run(x).runs
    assert float((chosen == runs).double().mean()) > 0.85
    assert float((chosen[:, 1] == runs[:, 1]).double().mean()) > 0.8


def test_what_routers_look_at_is_what_they_meet_on_the_labelled_path(residual):
    network = SkipNetwork(residual(), WindowRouters(4, 8, editable=[1, 3]).double())
    x, runs = labelled(5)
    pooled = pooled_states(network, x, runs)
    assert [part.shape for part in pooled] == [(5, 1, 8)] * 2
    state = network.trunk.begin(x)
    assert_close(pooled[0][:, 0], network.trunk.block(0, state))
    chosen = network.run(x).runs
    assert_close(pooled_states(network, x, None), pooled_states(network, x, chosen))


def test_labels_that_do_not_fit_are_refused(residual):
    network = SkipNetwork(residual(), WindowRouters(4, 8, actions=2).double())
    x, runs = labelled(40)
    with pytest.raises(InputError, match="counts up to 1"):
        fit_routers(network, x, runs)
    with pytest.raises(InputError, match="at least one path"):
        fit_routers(network, x[:0], runs[:0])


def test_stochastic_depth_leaves_blocks_out_as_often_as_asked(residual):
    trunk, x = residual(), torch.randn(2000, 5).double()
    assert rising(4, 0.4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    logits = skipping_logits(trunk, x, [0, 0.5, 1, 0.25], torch.Generator().manual_seed(0))
    assert [sum(rows) for rows in trunk.rows] == pytest.approx([2000, 1000, 0, 1500], abs=80)
    logits.sum().backward()
    assert trunk.inner[0][0].weight.grad is not None
    same = skipping_logits(trunk, x, [0.0] * 4, torch.Generator())
    assert_close(same, run_paths(trunk, x, torch.ones(4).long()).output)
    with pytest.raises(InputError, match="one probability each"):
        skipping_logits(trunk, x, [0.5], torch.Generator())


def test_the_gap_holds_routers_between_chance_and_the_oracle(residual):
    torch.manual_seed(1)
    trunk = residual()
    network = SkipNetwork(trunk, WindowRouters(4, 8).double())
    x = torch.randn(700, 5).double()
    y = trunk(x).argmax(dim=1)
    paths = enumerate_paths(4)
    runs, found = every_path(trunk, x[:500], y[:500], paths).best()
    assert found.all()
    fit_routers(network, x[:500], runs, updates=60, rate=2e-2)
    prices = [-math.inf, -1.0, 0.0]
    held_x, held_y = x[500:], y[500:]
    gap = skip_gap(network, held_x, held_y, every_path(trunk, held_x, held_y, paths), prices=prices)
    at = gap.at(-1.0)
    assert at["over shuffled"] > 0.02
    assert at["over exchanged"] > 0.02
    assert at["below oracle"] > 0
    assert 0 < at["skipped"] < 1
    assert gap.oracle.points[0].quality == 1.0
    np.testing.assert_allclose(
        gap.exchanged.outcomes.cost.mean(axis=1), gap.routers.outcomes.cost.mean(axis=1)
    )
    assert gap.routers.points[0].cost == gap.shuffled.points[0].cost
    joined = gap.together()
    assert len(joined.points) == 3 * len(gap.runs) + len(gap.oracle.points)
    assert "routers -1" in [point.knob for point in joined.points]
    assert "below the oracle" in gap.words(-1.0)
    assert gap.at(-math.inf)["saved"] == pytest.approx(0.0)
