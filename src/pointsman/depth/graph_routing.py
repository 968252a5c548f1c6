"""Vertices of a similarity graph get vectors of their own for routing, learned from an expert.

After Baranchuk, Persiyanov, Sinitsin & Babenko, "Learning to Route in Similarity Graphs" (2019,
arXiv:1905.10987). The score of vertex v for query q is

    s(q, v) = <q, v'> + b_v,    v' = v + network(v, neighbours of v),

and the search goes where s is largest. Training imitates an expert who knows the way: at every hop
of a search under Gumbel noise, the vertices in the heap with the fewest hops to the true neighbour
should hold the mass of the heap's softmax, and in the end the closest vertex seen that of all seen.
The best-scored vertices are then ranked by true distance, which the budget pays for.

Where we depart: an offset b_v, at first -|v|^2 / 2, and a network that adds nothing at first, so
that before training the order is exactly that of distances, for vectors of any length; queries stay
as they are; and vertices may have free vectors too, which suits small graphs.

Legend: V vertices, K edges (padded by -1), Q queries, S vertices scored, N hops, D width, H hidden
units.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.graphs import Score, hops_to, nearest_neighbours, walk
from pointsman.errors import InputError
from pointsman.select.noise import gumbel_like

TABLE = (
    1 << 24
)  # hops that are kept for all targets at once; above, they are counted batch by batch


class GraphConvolution(nn.Module):
    """x + dense(elu(linear(mean of x over a vertex and its neighbours))), normalised before."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_VD: Tensor, neighbours_VK: Tensor) -> Tensor:
        """(V, D) → (V, D)."""
        normed_VD = self.norm(x_VD)
        there_VK1 = (neighbours_VK >= 0).to(x_VD.dtype)[:, :, None]
        near_VD = (normed_VD[neighbours_VK.clamp_min(0)] * there_VK1).sum(dim=1)
        mean_VD = (normed_VD + near_VD) / (1 + there_VK1.sum(dim=1))
        added: Tensor = self.out(functional.elu(self.mix(mean_VD)))
        return x_VD + added


class RoutingVectors(nn.Module):
    """Routing vectors and offsets of all vertices.

    Args:
        vectors_VD: base vectors; kept as a buffer.
        neighbours_VK: the graph; kept as a buffer.
        blocks: graph convolutions, 0 or more.
        hidden: H of each and of the last network.
        free: vertices also have a learned vector and offset each.

    Raises:
        InputError: a graph over another number of vertices.
    """

    def __init__(
        self,
        vectors_VD: Tensor,
        neighbours_VK: Tensor,
        *,
        blocks: int = 3,
        hidden: int = 256,
        free: bool = False,
    ) -> None:
        super().__init__()
        count, width = vectors_VD.shape
        if len(neighbours_VK) != count:
            raise InputError(f"{count} vectors and {len(neighbours_VK)} vertices do not fit")
        self.vectors_VD: Tensor
        self.neighbours_VK: Tensor
        self.register_buffer("vectors_VD", vectors_VD)
        self.register_buffer("neighbours_VK", neighbours_VK)
        self.blocks = nn.ModuleList(GraphConvolution(width, hidden) for _ in range(blocks))
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ELU(), nn.Linear(hidden, width + 1))
        nn.init.zeros_(self.head[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[2].bias)  # type: ignore[arg-type]
        self.free = nn.Parameter(torch.zeros(count, width + 1)) if free else None

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors (V, D) and offsets (V,) of all vertices; computed once and kept for serving."""
        x_VD = self.vectors_VD
        for block in self.blocks:
            x_VD = block(x_VD, self.neighbours_VK)
        added = self.head(x_VD)
        if self.free is not None:
            added = added + self.free
        offset_V = added[:, -1] - self.vectors_VD.square().sum(dim=1) / 2
        return self.vectors_VD + added[:, :-1], offset_V

    def score(self, queries_QD: Tensor) -> Score:
        """Scores of vertices for these queries, for `walk`; vertices are encoded once, here."""
        with torch.no_grad():
            vectors_VD, offset_V = self()

        def of(queries_Q: Tensor, vertices_QC: Tensor) -> Tensor:
            products = torch.einsum("qcd,qd->qc", vectors_VD[vertices_QC], queries_QD[queries_Q])
            scores: Tensor = products + offset_V[vertices_QC]
            return scores

        return of


class ImitateExpert:
    """Fit routing vectors to queries by imitation.

    Args:
        budget: vertices scored in each training search.
        updates: of Adam.
        batch: queries an update.
        rate: at the start; it rises over the first tenth and falls to 0 along a cosine.
        temperature: of softmax and noise, in units of the scores' spread over the vertices before
            training.
        noise: multiple of the Gumbel noise in training searches; 0: none.
        start: vertex from which searches set out, as when they are used.
        seed: of batches and noise.

    Attributes:
        losses_: of every update.
    """

    def __init__(
        self,
        *,
        budget: int,
        updates: int = 300,
        batch: int = 64,
        rate: float = 1e-3,
        temperature: float = 0.1,
        noise: float = 1.0,
        start: int = 0,
        seed: int = 0,
    ) -> None:
        self.budget, self.updates, self.batch, self.rate = budget, updates, batch, rate
        self.temperature, self.noise, self.start, self.seed = temperature, noise, start, seed

    def fit(self, router: RoutingVectors, queries_QD: Tensor) -> "ImitateExpert":
        """Train the router's weights in place on queries of the kind that will come.

        Raises:
            InputError: no query.
        """
        if len(queries_QD) == 0:
            raise InputError("imitation needs at least one training query, got none")
        generator = torch.Generator(queries_QD.device).manual_seed(self.seed)
        target_Q = nearest_neighbours(router.vectors_VD, queries_QD, 1)[:, 0]
        with torch.no_grad():
            unit = float((queries_QD @ router.vectors_VD.T + router()[1]).std(dim=1).mean())
        optimiser = torch.optim.Adam(router.parameters(), self.rate, amsgrad=True)
        hops = _hops(router.neighbours_VK, target_Q)
        self.losses_: list[float] = []
        for update in range(self.updates):
            progress = update / self.updates
            warm = min(1.0, 10 * (update + 1) / self.updates)
            optimiser.param_groups[0]["lr"] = self.rate * warm * (1 + np.cos(np.pi * progress)) / 2
            rows = torch.randint(
                len(queries_QD), (self.batch,), generator=generator, device=queries_QD.device
            )
            hops_QV = hops(target_Q[rows])
            loss = self.loss(router, queries_QD[rows], hops_QV, self.temperature * unit, generator)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            self.losses_.append(float(loss.detach()))
        return self

    def loss(
        self,
        router: RoutingVectors,
        queries_QD: Tensor,
        hops_QV: Tensor,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Half the mean loss over a query's hops and half that of its answer; mean over queries.

        Args:
            router: whose weights get gradient.
            queries_QD: of one batch.
            hops_QV: from every vertex to each query's nearest, see `hops_to`. Hops of a search from
                whose heap no way leads there count nothing.
            temperature: the scores are divided by it.
            generator: of the noise.
        """
        vectors_VD, offset_V = router()
        logits_QV = (queries_QD @ vectors_VD.T + offset_V) / temperature
        noisy_QV = logits_QV.detach()
        if self.noise > 0:
            noisy_QV = noisy_QV + self.noise * gumbel_like(noisy_QV, generator).to(noisy_QV.dtype)
        walking: list[Tensor] = []
        heaps: list[Tensor] = []

        def keep(walking_Q: Tensor, heap_QV: Tensor) -> None:
            walking.append(walking_Q)
            heaps.append(heap_QV.clone())

        walked = walk(
            router.neighbours_VK,
            lambda queries_Q, vertices_QC: noisy_QV[queries_Q[:, None], vertices_QC],
            len(queries_QD),
            self.budget,
            start=self.start,
            on_hop=keep,
        )
        # Only what was scored matters: a few columns instead of all vertices.
        column_QS = walked.scores.topk(int(walked.scored.max()), dim=1).indices
        logits_QS = logits_QV.gather(1, column_QS)
        seen_QS = walked.scores.gather(1, column_QS) > -torch.inf
        apart_QS = (router.vectors_VD[column_QS] - queries_QD[:, None]).norm(dim=2)
        loss_Q = _missed(logits_QS, apart_QS, seen_QS)
        if not heaps:
            return loss_Q.mean()
        heap_NQS = torch.stack([heap.gather(1, column_QS) for heap in heaps])
        away_QS = hops_QV.gather(1, column_QS)
        counted_NQ = torch.stack(walking) & (heap_NQS & away_QS.isfinite()).any(dim=2)
        hop_NQ = _missed(logits_QS, away_QS, heap_NQS).where(counted_NQ, 0.0)
        hop_Q = hop_NQ.sum(dim=0) / counted_NQ.sum(dim=0).clamp_min(1)
        return (hop_Q + loss_Q).mean() / 2


def _hops(neighbours_VK: Tensor, target_Q: Tensor) -> Callable[[Tensor], Tensor]:
    """`hops_to` for batches of these targets, all at once where the table is not too large."""
    every: Tensor = torch.unique(target_Q)
    if len(every) * len(neighbours_VK) > TABLE:
        return partial(hops_to, neighbours_VK)
    table = hops_to(neighbours_VK, every)
    return lambda targets: table[torch.searchsorted(every, targets)]


def _missed(logits: Tensor, far: Tensor, among: Tensor) -> Tensor:
    """Minus the logarithm of the share of mass on those least far among some; over the last axis.

    Where there are none, it is finite and means nothing.
    """
    tiny = torch.finfo(logits.dtype).min
    far = far.where(among, torch.inf)
    best = among & (far == far.amin(dim=-1, keepdim=True))
    right = logits.where(best, tiny).logsumexp(dim=-1)
    return logits.where(among, tiny).logsumexp(dim=-1) - right
