"""Rows and messages of flat and of two-level dispatch, counted by hand and by a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import InputError
from pointsman.moe.parallel import Cluster, Traffic, flat_traffic, two_level_traffic
from pointsman.route import Route
from pointsman.select import top_k, within_best_group


def both(route: Route, cluster: Cluster) -> tuple[Traffic, Traffic]:
    """Experts in equal blocks, tokens in turns over the devices."""
    device_of = np.arange(route.num_branches) * cluster.devices // route.num_branches
    home = np.arange(route.num_inputs) % cluster.devices
    return (
        flat_traffic(route, device_of, home, cluster),
        two_level_traffic(route, device_of, home, cluster),
    )


def test_one_token_by_hand() -> None:
    # Devices 0 1 | 2 3, one expert each; a token at device 1 takes experts 1, 2 and 3.
    route = Route.from_indices(torch.tensor([[1, 2, 3]]), num_branches=4)
    cluster = Cluster(2, 2)
    flat = flat_traffic(route, np.arange(4), np.array([1]), cluster)
    assert (flat.rows("inter"), flat.rows("intra"), flat.messages("inter")) == (2, 0, 2)
    two = two_level_traffic(route, np.arange(4), np.array([1]), cluster)
    # 1 to 3 once; there it is at one of its experts, and goes on to 2.
    assert (two.rows("inter"), two.rows("intra")) == (1, 1)
    assert (two.messages("inter"), two.messages("intra")) == (1, 1)


def test_seconds_are_of_the_slowest_device_of_each_exchange() -> None:
    cluster = Cluster(2, 2, intra=10.0, inter=5.0)
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 2], first[1, 3], second[2, 3], second[0, 0] = 3, 1, 4, 100
    traffic = Traffic((first, second), cluster)
    assert traffic.seconds(10) == 3 * 10 / 5 + 4 * 10 / 10
    assert traffic.seconds(10, start=2.0) == 10 + 4.0
    assert traffic.peers() == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_counts_equal_a_loop(seed: int, nodes: int, per_node: int, k: int) -> None:
    cluster = Cluster(nodes, per_node)
    scores = torch.randn(20, 2 * cluster.devices, generator=torch.Generator().manual_seed(seed))
    route = top_k(scores, min(k, scores.shape[1]))
    flat, two = both(route, cluster)
    between = set()
    crossed = 0
    for token, expert in zip(route.inputs.tolist(), route.branches.tolist(), strict=True):
        home, target = token % cluster.devices // per_node, expert // 2 // per_node
        crossed += home != target
        if home != target:
            between.add((token, target))
    assert flat.rows("inter") == crossed
    assert two.rows("inter") == len(between)
    assert two.rows("inter") <= flat.rows("inter")
    assert sum(hop.sum() for hop in flat.hops) == len(route)


def test_peers_fall_from_all_devices_to_two_short_lists() -> None:
    cluster = Cluster(4, 3)
    route = top_k(torch.randn(5000, 12, generator=torch.Generator().manual_seed(0)), 2)
    flat, two = both(route, cluster)
    assert flat.peers() == 4 * 3 - 1
    assert two.peers() == (4 - 1) + (3 - 1)
    assert flat.messages("inter") == 12 * (4 - 1) * 3
    assert two.messages("inter") == 12 * (4 - 1)


def test_one_group_a_token_makes_one_row_a_token() -> None:
    cluster = Cluster(4, 1)
    scores = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    single, several = within_best_group(scores, 4, 1), within_best_group(scores, 4, 4)
    one, many = both(single, cluster)[1], both(several, cluster)[1]
    assert one.rows("inter") == many.rows("inter")
    assert (one.hops[0] == many.hops[0]).all()


def test_devices_that_do_not_fit_are_refused() -> None:
    route = top_k(torch.randn(3, 4), 1)
    with pytest.raises(InputError, match="device_of needs a device below 2 for each of 4"):
        flat_traffic(route, np.array([0, 1, 2, 0]), np.zeros(3, dtype=np.int64), Cluster(1, 2))
    with pytest.raises(InputError, match="home needs a device"):
        flat_traffic(route, np.zeros(4, dtype=np.int64), np.zeros(2, dtype=np.int64), Cluster(1, 2))
    with pytest.raises(InputError, match="one of inter, intra"):
        both(route, Cluster(1, 2))[0].rows("node")  # type: ignore[arg-type]
