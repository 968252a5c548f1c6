"""Search in similarity graphs: parity with a plain heap, budgets kept, routing by imitation."""

import heapq

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.graph_routing import ImitateExpert, RoutingVectors
from pointsman.depth.graphs import (
    distance_score,
    hops_to,
    nearest_neighbours,
    search_frontier,
    similarity_graph,
    walk,
)
from pointsman.errors import InputError

# 0 - 1 - 2 - 3 in a line, with a dead end 4 at 1, and an edge from 5 that nobody has to it
LINE = torch.tensor([[1, -1, -1], [0, 2, 4], [1, 3, -1], [2, -1, -1], [1, -1, -1], [3, -1, -1]])


def points(count=60, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def by_heap(neighbours, score, budget, start=0, greedy=False):
    """One query, the usual way."""
    known = {start: score(start)}
    heap, expanded, reached = [(-known[start], start)], 0, -np.inf
    while heap and len(known) < budget:
        value, vertex = heapq.heappop(heap)
        if greedy and -value <= reached:
            break
        reached, expanded = max(reached, -value), expanded + 1
        for other in neighbours[vertex]:
            if other >= 0 and other not in known and len(known) < budget:
                known[other] = score(other)
                heapq.heappush(heap, (-known[other], other))
    return known, expanded


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("budget", [1, 7, 25, 1000])
def test_a_walk_of_many_queries_is_that_of_each_with_a_heap(budget, greedy):
    base, queries = points(), points(12, seed=1)
    graph = similarity_graph(base, 4)
    found = walk(graph, distance_score(base, queries), 12, budget, start=3, greedy=greedy)
    for row, query in enumerate(queries):
        known, expanded = by_heap(
            graph.tolist(), lambda v, q=query: -float((base[v] - q).norm()), budget, 3, greedy
        )
        seen = found.scores[row] > -torch.inf
        assert set(seen.nonzero()[:, 0].tolist()) == set(known)
        assert_close(
            found.scores[row][seen], torch.tensor([known[v] for v in sorted(known)]).double()
        )
        assert int(found.hops[row]) == expanded
        assert int(found.scored[row]) == len(known) <= budget


def test_a_graph_joins_both_ways_and_pads():
    base = points(20)
    graph = similarity_graph(base, 3)
    joined = {(v, o) for v, row in enumerate(graph.tolist()) for o in row if o >= 0}
    assert joined == {(o, v) for v, o in joined}
    assert all(v != o for v, o in joined)
    near = nearest_neighbours(base, base, 4)[:, 1:]
    assert all((v, o) in joined for v, row in enumerate(near.tolist()) for o in row)
    assert similarity_graph(torch.zeros(5, 2), 2).shape[0] == 5  # equal vectors


def test_hops_are_counted_along_edges_to_the_target():
    hops = hops_to(LINE, torch.tensor([3, 5]))
    assert hops[0].tolist() == [3, 2, 1, 0, 3, 1]
    assert hops[1].tolist() == [np.inf] * 5 + [0]


def test_a_full_walk_of_a_connected_graph_finds_the_nearest():
    base, queries = points(), points(30, seed=1)
    graph = similarity_graph(base, 5)
    assert bool(hops_to(graph, torch.tensor([0])).isfinite().all())
    answer, route = walk(graph, distance_score(base, queries), 30, 60).answer(base, queries)
    assert torch.equal(answer, nearest_neighbours(base, queries, 1)[:, 0])
    assert torch.equal(route.validate().answered_by(), answer)
    assert (route.branches_per_input() == 60).all()


def test_reranking_takes_the_truly_closest_of_the_best_scored():
    base, queries = points(), points(10, seed=1)
    graph = similarity_graph(base, 5)
    wrong = distance_score(base.flip(0), queries)  # scores of other vertices
    walked = walk(graph, wrong, 10, 30)
    answer, _ = walked.answer(base, queries, rerank=8)
    for row in range(10):
        best = walked.scores[row].topk(8).indices
        apart = (base[best] - queries[row]).norm(dim=1)
        assert int(answer[row]) == int(best[apart.argmin()])


def test_the_frontier_charges_reranking_and_projection():
    base, queries = points(), points(40, seed=1)
    graph = similarity_graph(base, 5)
    plain = search_frontier("plain", graph, base, queries, [60, 20, 10])
    assert [p.cost for p in plain.points] == pytest.approx([60, 20, 10])
    assert plain.points[0].quality == 1.0
    assert plain.reference.cost == 60
    other = search_frontier(
        "routed", graph, base, queries, [20], score=distance_score(base, queries), rerank=4, extra=3
    )
    walked = walk(graph, distance_score(base, queries), 40, 13)
    assert other.points[0].cost == pytest.approx(float(walked.scored.double().mean()) + 7)


@pytest.mark.parametrize("free", [True, False])
def test_untrained_routing_walks_as_distances_do(free):
    base, queries = points(), points(15, seed=1)
    graph = similarity_graph(base, 4)
    torch.manual_seed(0)
    router = RoutingVectors(base, graph, blocks=0 if free else 2, hidden=8, free=free).double()
    if not free:
        with torch.no_grad():  # blocks that add nothing, as the head does
            for block in router.blocks:
                block.out.weight.zero_()
                block.out.bias.zero_()
    one = walk(graph, router.score(queries), 15, 20)
    two = walk(graph, distance_score(base, queries), 15, 20)
    assert torch.equal(one.scores > -torch.inf, two.scores > -torch.inf)


def test_imitation_learns_the_way_round_a_dead_end():
    # From 0 the vertices 1 and 2 are scored; 1 looks closer to the query, but only 2 leads there.
    base = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [3.0, 1.0]])
    graph = torch.tensor([[1, 2], [0, -1], [0, 3], [2, 4], [3, -1]])
    queries = base[4:].expand(8, 2) + 0.01 * points(8, 2).float()
    router = RoutingVectors(base, graph, blocks=0, hidden=4, free=True)

    def recall(budget):
        walked = walk(graph, router.score(queries), 8, budget)
        return float((walked.answer(base, queries, rerank=5)[0] == 4).float().mean())

    assert recall(5) == 1.0
    before = walk(graph, router.score(queries), 8, 5)
    fit = ImitateExpert(budget=5, updates=60, batch=8, rate=0.1, seed=0).fit(router, queries)
    after = walk(graph, router.score(queries), 8, 5)
    assert fit.losses_[-1] < fit.losses_[0]
    assert (before.hops == 4).all()
    assert (after.hops == 3).all()  # 0, 2 and 3: vertex 1 is not expanded any more


def test_the_loss_is_that_of_the_experts_by_hand():
    base = torch.tensor([[0.0], [1.0], [-1.0]])
    graph = torch.tensor([[1, 2], [0, -1], [0, -1]])
    router = RoutingVectors(base, graph, blocks=0, hidden=2)
    query = torch.tensor([[0.8]])
    imitate = ImitateExpert(budget=3, noise=0.0)
    found = imitate.loss(router, query, hops_to(graph, torch.tensor([1])), 1.0)
    logits = 0.8 * base[:, 0] - base[:, 0].square() / 2
    # one hop, from a heap with the start alone, so with no loss; then the answer among all three
    assert_close(found, (logits.logsumexp(0) - logits[1]) / 2)


def test_gradients_of_the_loss_are_right():
    base, queries = points(12, 3), points(4, 3, seed=1)
    graph = similarity_graph(base, 2)
    torch.manual_seed(0)
    router = RoutingVectors(base, graph, blocks=1, hidden=3).double()
    imitate = ImitateExpert(budget=6, noise=0.0)
    hops = hops_to(graph, nearest_neighbours(base, queries, 1)[:, 0])
    weight = router.head[2].weight
    imitate.loss(router, queries, hops, 1.0).backward()
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-6
    with torch.no_grad():
        weight += step
        up = imitate.loss(router, queries, hops, 1.0)
        weight -= 2 * step
        down = imitate.loss(router, queries, hops, 1.0)
    assert_close((up - down) / 2e-6, weight.grad[0, 0], atol=1e-5, rtol=1e-4)


def test_large_graphs_count_hops_batch_by_batch_to_the_same_end(monkeypatch):
    base, queries = points(20, 3).float(), points(10, 3, seed=1).float()
    graph, losses = similarity_graph(base, 3), []
    for table in (0, 1 << 20):
        monkeypatch.setattr("pointsman.depth.graph_routing.TABLE", table)
        torch.manual_seed(0)
        router = RoutingVectors(base, graph, blocks=0, hidden=2, free=True)
        fit = ImitateExpert(budget=8, updates=3, batch=4).fit(router, queries)
        losses.append(fit.losses_)
    assert losses[0] == losses[1]


def test_what_does_not_fit_is_refused():
    base = points()
    graph = similarity_graph(base, 3)
    score = distance_score(base, base[:2])
    for budget, start in ((0, 0), (5, 60)):
        with pytest.raises(InputError, match="scores at least one vertex"):
            walk(graph, score, 2, budget, start=start)
    with pytest.raises(InputError, match="tables of one width"):
        nearest_neighbours(base, base[:, :2], 1)
    with pytest.raises(InputError, match="61 were asked for"):
        nearest_neighbours(base, base, 61)
    with pytest.raises(InputError, match="1 to 59 edges"):
        similarity_graph(base, 60)
    with pytest.raises(InputError, match="at least one query"):
        search_frontier("none", graph, base, base[:0], [5])
    with pytest.raises(InputError, match="at least one training query"):
        ImitateExpert(budget=5).fit(RoutingVectors(base, graph), base[:0])
    with pytest.raises(InputError, match="do not fit"):
        RoutingVectors(base[:5], graph)
