"""Traces, placements and their integer programs, which equal brute force where that is possible."""

from functools import partial
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pointsman.errors import InputError
from pointsman.moe.parallel import (
    Cluster,
    MarkovTraces,
    Trace,
    chained,
    contiguous,
    crossing,
    even_clusters,
    exflow,
    exflow_exact,
    flows,
    greedy,
    imbalance,
    improved,
    moetuner,
    seconds,
    shuffled,
    travel,
)
from pointsman.moe.parallel.cluster import Ids
from pointsman.select import threshold, top_k


def equal_halves(experts: int) -> list[Ids]:
    """Every way to put half of the experts on device 1."""
    chosen = combinations(range(experts), experts // 2)
    return [np.isin(np.arange(experts), own).astype(np.int64) for own in chosen]


def test_a_trace_counts_by_hand() -> None:
    trace = Trace(np.array([[[0, 1], [1, -1]], [[2, -1], [2, 0]]]), 3)
    assert trace.load.tolist() == [[1, 2, 0], [1, 0, 2]]
    assert trace.transitions[0].tolist() == [[0, 0, 1], [1, 0, 2], [0, 0, 0]]
    assert trace.routed_to()[1].astype(int).tolist() == [[0, 1, 0], [1, 0, 1]]
    first, rest = trace.split(1)
    assert_allclose(first.load + rest.load, trace.load)


def test_a_trace_of_routes_is_what_the_routes_say() -> None:
    torch.manual_seed(0)
    layers = [top_k(torch.randn(9, 5), 2), threshold(torch.randn(9, 5), 0.4)]
    trace = Trace.of(layers)
    for at, route in enumerate(layers):
        assert trace.load[at].tolist() == route.load().tolist()
        assert (trace.routed_to()[:, at] == route.mask().numpy()).all()
    with pytest.raises(InputError, match="as many tokens and experts"):
        Trace.of([layers[0], top_k(torch.randn(8, 5), 2)])
    assert Trace.of([top_k(torch.randn(0, 5), 2)] * 2).transitions.sum() == 0


def test_drawn_traces_follow_their_chances() -> None:
    world = MarkovTraces(0, 3, 5, affinity=1.5, skew=0.5)
    trace = world.draw(40_000, seed=1)
    share = trace.transitions[1] / trace.transitions[1].sum(axis=1, keepdims=True)
    assert_allclose(share, world.chances[2], atol=0.02)
    assert (world.draw(50, seed=1).experts == world.draw(50, seed=1).experts).all()
    even = MarkovTraces(0, 2, 4, affinity=0.0)
    assert_allclose(even.chances, 0.25)


def test_measures_by_hand() -> None:
    trace = Trace(np.array([[[0], [0], [1], [3]], [[0], [1], [1], [3]]]), 4)
    place = np.array([[0, 0, 1, 1], [1, 0, 0, 1]])
    cluster = Cluster(2, 1, inter=10.0)
    assert flows(trace, place, 2)[0].tolist() == [[2, 1], [0, 1]]
    assert crossing(trace, place, 2) == 0.25
    assert_allclose(imbalance(trace, place, 2), (1.5 + 1.0) / 2 - 1)
    took = seconds(trace, place, cluster, row_bytes=40, row_seconds=1.0)
    assert_allclose(took, 3 + 2 + 1 * 40 / 10)


def test_hops_count_nodes_twice() -> None:
    trace = Trace(np.array([[[0], [0], [0]], [[0], [1], [2]]]), 4)
    place = contiguous(2, 4, 4)
    assert_allclose(travel(trace, place, Cluster(2, 2)), (0 + 1 + 2) / 3)
    assert_allclose(crossing(trace, place, 4), 2 / 3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_every_placement_is_equal_where_it_says_so(seed: int) -> None:
    trace = MarkovTraces(seed, 3, 8, skew=1.0).draw(200, 0)
    for place in (contiguous(3, 8, 4), shuffled(3, 8, 4, seed=seed), chained(trace, 4)):
        assert all((np.bincount(layer, minlength=4) == 2).all() for layer in place)
    assert all((np.bincount(layer, minlength=3) <= 3).all() for layer in greedy(trace, 3))
    start, cluster = shuffled(3, 8, 4, seed=seed), Cluster(2, 2)
    better = improved(trace, start, cluster)
    assert travel(trace, better, cluster) <= travel(trace, start, cluster)
    assert all((np.bincount(layer, minlength=4) == 2).all() for layer in better)


@pytest.mark.parametrize("seed", range(3))
def test_halving_equals_brute_force_on_two_devices(seed: int) -> None:
    trace, cluster = MarkovTraces(seed, 3, 4).draw(100, 0), Cluster(1, 2)
    cross = partial(crossing, trace, devices=2)
    best = min(cross(np.stack(layers)) for layers in product(equal_halves(4), repeat=3))
    assert_allclose(cross(exflow_exact(trace, cluster)), best)
    assert_allclose(cross(exflow(trace, cluster, node_limit=1000, starts=0)), best)


def test_the_exact_program_equals_brute_force_over_nodes() -> None:
    trace, cluster = MarkovTraces(1, 2, 4).draw(100, 0), Cluster(2, 2)
    ways = [np.array(order) for order in permutations(range(4))]
    best = min(travel(trace, np.stack(pair), cluster) for pair in product(ways, ways))
    assert_allclose(travel(trace, exflow_exact(trace, cluster), cluster), best)


def test_nodes_are_cut_before_devices() -> None:
    trace = MarkovTraces(0, 2, 6).draw(300, 0)
    place = exflow(trace, Cluster(3, 2), starts=0)
    assert all((np.bincount(layer, minlength=6) == 1).all() for layer in place)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=4, max_size=6))
def test_even_clusters_equal_brute_force(load: list[int]) -> None:
    load_E = np.array(load, dtype=np.float64)

    def distance(group: Ids) -> float:
        totals = np.bincount(group, load_E, 3)
        return float(np.abs(totals - load_E.sum() / 3).sum())

    every = [np.array(group) for group in product(range(3), repeat=len(load))]
    best = min(distance(group) for group in every if len(set(group.tolist())) == 3)
    found = even_clusters(load_E, 3)
    assert set(found.tolist()) == {0, 1, 2}
    assert_allclose(distance(found), best, atol=1e-6)


@pytest.mark.parametrize("cluster", [Cluster(1, 2, intra=1e9), Cluster(2, 1, inter=1e9)])
def test_moetuner_equals_brute_force_on_two_devices(cluster: Cluster) -> None:
    trace = MarkovTraces(3, 2, 4, skew=0.5).draw(100, 0)
    group = np.stack([even_clusters(load_E, 2) for load_E in trace.load])
    cost = partial(seconds, trace, cluster=cluster, row_bytes=8.0, row_seconds=0.0)
    ways = [np.stack([group[0], group[1] ^ flip]) for flip in (0, 1)]
    totals = [np.bincount(way.ravel(), minlength=2).max() for way in ways]
    best = min(cost(way) for way, most in zip(ways, totals, strict=True) if most == min(totals))
    found = moetuner(trace, cluster, gap=0.0)
    assert_allclose(cost(found), best)
    assert np.bincount(found.ravel(), minlength=2).max() == min(totals)


def test_slow_links_are_spared() -> None:
    trace = MarkovTraces(0, 2, 4, affinity=3.0).draw(500, 0)
    cluster = Cluster(2, 2, intra=1e12, inter=1e9)
    cost = partial(seconds, trace, cluster=cluster, row_bytes=8.0, row_seconds=0.0)
    ways = [np.array(order) for order in permutations(range(4))]
    best = min(cost(np.stack(pair)) for pair in product(ways, ways))
    assert_allclose(cost(moetuner(trace, cluster, gap=0.0, node_limit=1000)), best)


def test_misuse_is_refused() -> None:
    trace = MarkovTraces(0, 2, 4).draw(10, 0)
    with pytest.raises(InputError, match="on 1 to 4 experts|on 1 to 4 devices, got 5"):
        contiguous(2, 4, 5)
    with pytest.raises(InputError, match="use a number of devices that divides"):
        exflow(trace, Cluster(1, 3))
    with pytest.raises(InputError, match="a trace needs two, got 1"):
        exflow_exact(MarkovTraces(0, 1, 4).draw(10, 0), Cluster(1, 2))
    with pytest.raises(InputError, match="every device needs an expert: 5 devices, 4 experts"):
        moetuner(trace, Cluster(1, 5))
    with pytest.raises(InputError, match=r"int64 array \(2, 4\) of devices below 2"):
        crossing(trace, contiguous(2, 4, 4), 2)
    with pytest.raises(InputError, match="experts of a trace are below 2"):
        Trace(np.array([[[2]]]), 2)
    with pytest.raises(InputError, match="bandwidths above 0"):
        Cluster(1, 1, intra=0.0)
