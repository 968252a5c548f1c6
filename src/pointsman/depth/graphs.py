"""Nearest neighbours by walking through a similarity graph: hops and distances against recall.

A vertex is a base vector, its edges go to similar ones, and a search walks from a start vertex to
the neighbours of the most promising vertex seen so far. What is paid for is the number of vertices
that are scored (each one distance), what is gained is recall: whether the true nearest vector is
found. Scores need not be distances to the base vectors; see `graph_routing` for learned ones.

Legend: V vertices, K edges of one (padded by -1), Q queries, D width, C vertices scored at a hop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from pointsman.cost import Cost
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Outcomes
from pointsman.route import Route

# queries (Q,) by number, vertices (Q, C) -> scores (Q, C), higher is nearer
Score = Callable[[Tensor, Tensor], Tensor]
# which queries walk on (Q,) bool, and which scored vertices they may expand next (Q, V) bool
OnHop = Callable[[Tensor, Tensor], None]
ROWS_AT_ONCE = 512


def nearest_neighbours(vectors_VD: Tensor, queries_QD: Tensor, count: int) -> Tensor:
    """The `count` base vectors closest to each query, by scanning all, (Q, count) int64.

    Raises:
        InputError: widths that differ, or a count that is not from 1 to V.
    """
    if vectors_VD.ndim != 2 or queries_QD.shape[1:] != vectors_VD.shape[1:]:
        raise InputError(
            "base vectors and queries are tables of one width, got "
            f"{tuple(vectors_VD.shape)} and {tuple(queries_QD.shape)}"
        )
    if not 1 <= count <= len(vectors_VD):
        raise InputError(f"there are {len(vectors_VD)} base vectors, {count} were asked for")
    rows = [
        torch.cdist(part, vectors_VD).topk(count, dim=1, largest=False).indices
        for part in torch.split(queries_QD, ROWS_AT_ONCE)
    ]
    return torch.cat(rows)


def similarity_graph(vectors_VD: Tensor, edges: int) -> Tensor:
    """Every vertex joined with its nearest `edges` others, both ways; (V, K) int64, -1 pads.

    Raises:
        InputError: fewer than one edge, or not fewer than vertices.
    """
    count = len(vectors_VD)
    if not 1 <= edges < count:
        raise InputError(f"{count} vertices have 1 to {count - 1} edges each, got {edges}")
    near = nearest_neighbours(vectors_VD, vectors_VD, edges + 1)
    joined: list[set[int]] = [set() for _ in range(count)]
    for vertex, others in enumerate(near.tolist()):
        for other in others:
            if other != vertex:  # where vectors are equal, a vertex need not be its own nearest
                joined[vertex].add(other)
                joined[other].add(vertex)
    width = max(len(others) for others in joined)
    rows = [sorted(others) + [-1] * (width - len(others)) for others in joined]
    return torch.tensor(rows, device=vectors_VD.device)


def hops_to(neighbours_VK: Tensor, targets_Q: Tensor) -> Tensor:
    """Fewest hops from every vertex to each target along the edges, (Q, V); inf: no way."""
    rows, columns = (neighbours_VK >= 0).nonzero().unbind(1)
    ends = neighbours_VK[rows, columns]
    count = len(neighbours_VK)
    # edges are turned round, so that one search from the target finds the way of everybody to it
    ones = np.ones(len(rows))
    turned = csr_matrix((ones, (ends.numpy(force=True), rows.numpy(force=True))), (count, count))
    found = dijkstra(turned, unweighted=True, indices=targets_Q.numpy(force=True))
    return torch.as_tensor(found, dtype=torch.float32, device=neighbours_VK.device)


@dataclass(frozen=True, eq=False)
class Walked:
    """What a search saw.

    Attributes:
        scores: (Q, V) of the vertices that were scored, -inf of the others.
        hops: (Q,) int64, vertices that were expanded.
        scored: (Q,) int64, vertices that were scored.
    """

    scores: Tensor
    hops: Tensor
    scored: Tensor

    def answer(
        self, vectors_VD: Tensor, queries_QD: Tensor, rerank: int = 1
    ) -> tuple[Tensor, Route]:
        """The best vertex of each query, and the route over vertices that were scored.

        Args:
            vectors_VD: base vectors, by which the best-scored vertices are ranked again.
            queries_QD: the queries.
            rerank: how many of each query are; at 1 the best-scored vertex is the answer.

        Returns:
            (Q,) int64; and a route with weight 1 for it and 0 for all others.
        """
        best_QR = self.scores.topk(min(rerank, self.scores.shape[1]), dim=1)
        apart_QR = (vectors_VD[best_QR.indices] - queries_QD[:, None]).norm(dim=2)
        apart_QR = apart_QR.masked_fill(best_QR.values == -torch.inf, torch.inf)
        answer_Q = best_QR.indices.gather(1, apart_QR.argmin(dim=1, keepdim=True))
        weights_QV = torch.zeros_like(self.scores).scatter(1, answer_Q, 1.0)
        return answer_Q[:, 0], Route.from_dense(weights_QV, self.scores > -torch.inf)


def distance_score(vectors_VD: Tensor, queries_QD: Tensor) -> Score:
    """The negative distance between query and base vector: the plain search."""

    def score(queries_Q: Tensor, vertices_QC: Tensor) -> Tensor:
        apart: Tensor = vectors_VD[vertices_QC] - queries_QD[queries_Q][:, None]
        distance: Tensor = torch.linalg.vector_norm(apart, dim=2)
        return distance.neg()

    return score


@torch.no_grad()
def walk(
    neighbours_VK: Tensor,
    score: Score,
    queries: int,
    budget: int,
    *,
    start: int = 0,
    greedy: bool = False,
    on_hop: OnHop | None = None,
) -> Walked:
    """Best-first search of many queries at once, until each has scored `budget` vertices.

    A hop expands the best vertex that was scored and not expanded yet: its neighbours that are new
    are scored, in the order of its edges as far as the budget goes.

    Args:
        neighbours_VK: the graph, int64, -1 pads.
        score: of vertices for queries; a gradient does not pass.
        queries: Q.
        budget: vertices to score, the start included, at least 1.
        start: vertex from which every query sets out.
        greedy: stop as soon as the best vertex that could be expanded is no better than the best
            that was, as plain greedy search does.
        on_hop: called before every hop.

    Raises:
        InputError: a budget below 1, or a start that is no vertex.
    """
    count = len(neighbours_VK)
    if budget < 1 or not 0 <= start < count:
        raise InputError(
            f"a walk scores at least one vertex and starts at 0 to {count - 1}, "
            f"got budget {budget} and start {start}"
        )
    device = neighbours_VK.device
    every = torch.arange(queries, device=device)
    first = score(every, torch.full((queries, 1), start, device=device))
    scores = first.new_full((queries, count), -torch.inf)
    scores[:, start] = first[:, 0]
    fringe = torch.zeros(queries, count, dtype=torch.bool, device=device)
    fringe[:, start] = True
    hops = torch.zeros(queries, dtype=torch.int64, device=device)
    scored, reached = hops + 1, first.new_full((queries,), -torch.inf)
    while True:
        best, vertex = scores.masked_fill(~fringe, -torch.inf).max(dim=1)
        walking = (scored < budget) & (best > (reached if greedy else -torch.inf))
        if not bool(walking.any()):
            return Walked(scores, hops, scored)
        if on_hop is not None:
            on_hop(walking, fringe)
        rows = every[walking]
        fringe[rows, vertex[rows]] = False
        reached[rows] = torch.maximum(reached[rows], best[rows])
        hops[rows] += 1
        near = neighbours_VK[vertex[rows]]
        new = (near >= 0) & (scores[rows[:, None], near.clamp_min(0)] == -torch.inf)
        new &= new.cumsum(dim=1) <= (budget - scored[rows])[:, None]
        fresh = score(rows, near.clamp_min(0))
        at, column = new.nonzero().unbind(1)
        scores[rows[at], near[at, column]] = fresh[at, column]
        fringe[rows[at], near[at, column]] = True
        scored[rows] += new.sum(dim=1)


def search_frontier(
    name: str,
    neighbours_VK: Tensor,
    vectors_VD: Tensor,
    queries_QD: Tensor,
    budgets: Sequence[int],
    *,
    score: Score | None = None,
    rerank: int = 1,
    extra: int = 0,
    start: int = 0,
    greedy: bool = False,
) -> Frontier:
    """Recall of the nearest neighbour against distance computations, with the budget as the knob.

    The reference scans all base vectors.

    Args:
        name: of the frontier.
        neighbours_VK: the graph.
        vectors_VD: base vectors.
        queries_QD: at least one.
        budgets: distance computations in all, from the most to the least; reranking and `extra`
            come off them first.
        score: None: `distance_score`, with which nothing is ranked again.
        rerank: vertices that are ranked again by true distance, each one computation more.
        extra: computations that a query costs besides, such as its projection.
        start: vertex from which every query sets out.
        greedy: see `walk`.

    Raises:
        InputError: no query, or a budget that leaves nothing for the walk.
    """
    if len(queries_QD) == 0:
        raise InputError("a frontier needs at least one query, got none")
    besides = 0 if score is None else rerank + extra
    target_Q = nearest_neighbours(vectors_VD, queries_QD, 1)[:, 0]
    scorer = distance_score(vectors_VD, queries_QD) if score is None else score
    quality, cost = [], []
    for budget in budgets:
        walked = walk(
            neighbours_VK,
            scorer,
            len(queries_QD),
            budget - besides,
            start=start,
            greedy=greedy,
        )
        answer_Q, route = walked.answer(vectors_VD, queries_QD, 1 if score is None else rerank)
        each = Cost(np.ones(len(vectors_VD)), "distances")
        quality.append((answer_Q == target_Q).numpy(force=True))
        cost.append(np.asarray(route.cost(each).amount) + besides)
    inputs = len(queries_QD)
    return Frontier.from_outcomes(
        name,
        Outcomes(
            tuple(budgets),
            np.stack(quality).astype(float),
            np.stack(cost),
            np.ones(inputs),
            np.full(inputs, float(len(vectors_VD))),
            "distances",
        ),
    )
