"""Experts that do not all fit into quick memory: predict them, group tokens by them, fetch ahead.

A small network predicts from the tokens alone which experts of all layers they will take. Tokens of
two batches are grouped so that each batch needs few experts, and predicted ones are brought into
quick memory before their layer runs.

He et al. 2024, "ExpertFlow: optimized expert activation and token allocation for efficient
mixture-of-experts inference" (arXiv 2410.17954). The memory here is simulated: a number of slots,
one channel that loads one expert after the other, and one unit that computes. Moving real weights
and key-value caches, and running on a GPU, are not here; and a recurrent network stands for the
paper's encoder and decoder.

Legend: n sequences, S places, L routed layers, E experts, N tokens, B steps of serving.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.parallel.cluster import Flags, Ids, Numbers

Place = tuple[int, int]  # layer, expert


class PathPredictor(nn.Module):
    """Token ids to the experts of all layers, before the first of them runs.

    Args:
        vocabulary: number of ids.
        layers: L.
        experts: E.
        width: of the network.

    Raises:
        InputError: a size below one.
    """

    def __init__(self, vocabulary: int, layers: int, experts: int, *, width: int = 64) -> None:
        super().__init__()
        if min(vocabulary, layers, experts, width) < 1:
            raise InputError(
                "a predictor needs sizes of at least 1, got "
                f"{vocabulary} ids, {layers} layers, {experts} experts, width {width}"
            )
        self.shape = (layers, experts)
        self.embed = nn.Embedding(vocabulary, width)
        self.read = nn.GRU(width, width, batch_first=True)
        self.answer = nn.Linear(2 * width, layers * experts)

    def forward(self, ids_nS: Tensor) -> Tensor:
        """(n, S) ids → logits (n, S, L, E); a token's do not hang on later ones."""
        own_nSD = self.embed(ids_nS)
        past_nSD, _ = self.read(own_nSD)
        logits: Tensor = self.answer(torch.cat([own_nSD, past_nSD], dim=2))
        return logits.reshape(*logits.shape[:-1], *self.shape)

    @torch.no_grad()
    def predict(self, ids_nS: Tensor, k: int) -> Tensor:
        """(n, S, L, E) bool: the k likeliest experts of each layer."""
        best = self(ids_nS).topk(k, dim=-1).indices
        return torch.zeros(*ids_nS.shape, *self.shape, dtype=torch.bool).scatter_(-1, best, True)


def fit_predictor(
    predictor: PathPredictor,
    ids_nS: Tensor,
    routed_nSLE: Tensor,
    *,
    seed: int,
    updates: int = 300,
    batch: int = 16,
    rate: float = 1e-2,
) -> None:
    """Train on recorded routes by binary cross-entropy, with Adam and a rate that falls to 0.

    Args:
        predictor: changed in place; then in evaluation mode.
        ids_nS: the sequences.
        routed_nSLE: bool, which experts each token took.
        seed: of the batches.
        updates: of the optimiser.
        batch: sequences an update, drawn with replacement.
        rate: at the start.

    Raises:
        InputError: routes of other sequences, layers or experts.
    """
    if routed_nSLE.shape != (*ids_nS.shape, *predictor.shape):
        raise InputError(
            f"routes must have shape {(*ids_nS.shape, *predictor.shape)}, "
            f"got {tuple(routed_nSLE.shape)}"
        )
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(predictor.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    predictor.train()
    for _ in range(updates):
        rows = torch.randint(len(ids_nS), (batch,), generator=generator)
        logits = predictor(ids_nS[rows])
        loss = functional.binary_cross_entropy_with_logits(logits, routed_nSLE[rows].to(logits))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    predictor.eval()


def regroup(paths_NLE: Flags, *, rounds: int = 20) -> Flags:
    """(N,) bool: which of two groups of equal size each token goes to, by what it needs.

    Two centres, as in k-means, under the Hamming distance of paths; in each round the half of the
    tokens that is nearer to the one centre than to the other goes to it, so sizes stay equal. It
    starts from the two tokens that differ most. Reorder the tokens, run each group as a batch, and
    put the answers back in order: outputs do not change.

    Args:
        paths_NLE: predicted or recorded experts of the tokens of two batches; N is even.
        rounds: at most.

    Raises:
        InputError: an odd number of tokens, or not three dimensions.
    """
    if paths_NLE.ndim != 3 or len(paths_NLE) % 2:
        raise InputError(
            "two groups of one size need paths (tokens, layers, experts) of an even number of "
            f"tokens, got shape {paths_NLE.shape}"
        )
    count = len(paths_NLE)
    second = np.zeros(count, dtype=np.bool_)
    if count == 0:
        return second
    rows = paths_NLE.reshape(count, -1).astype(np.float64)
    apart_NN = rows @ (1 - rows).T
    first, other = np.unravel_index((apart_NN + apart_NN.T).argmax(), (count, count))
    centres = np.stack([rows[first], rows[other]])
    for _ in range(rounds):
        distance = np.abs(rows[:, None] - centres).sum(axis=2)
        order = np.argsort(distance[:, 0] - distance[:, 1], kind="stable")
        found = np.zeros(count, dtype=np.bool_)
        found[order[count // 2 :]] = True
        if (found == second).all():
            break
        second = found
        centres = np.stack([rows[~second].mean(axis=0), rows[second].mean(axis=0)])
    return second


def touched(paths_NLE: Flags, second: Flags) -> int:
    """Experts of all layers that two groups need, each group by itself."""
    return int(sum(paths_NLE[group].any(axis=0).sum() for group in (~second, second)))


@dataclass(frozen=True)
class Memory:
    """A quick memory for a few experts, and a slow one for all.

    Args:
        slots: experts, of all layers together, that fit into the quick one.
        load: seconds to bring one there; one at a time.
        compute: seconds that an expert runs in a step.

    Raises:
        InputError: no slot, or a negative time.
    """

    slots: int
    load: float = 1.0
    compute: float = 1.0

    def __post_init__(self) -> None:
        if self.slots < 1 or self.load < 0 or self.compute < 0:
            raise InputError(
                "a memory needs a slot and times of at least 0, got "
                f"{self.slots}, {self.load} and {self.compute}"
            )


@dataclass(frozen=True)
class Served:
    """What serving a sequence of steps took.

    Attributes:
        requests: experts that layers asked for.
        hits: of them, those that lay in quick memory when their layer began.
        loads: experts that were brought there.
        seconds: in all.
    """

    requests: int
    hits: int
    loads: int
    seconds: float

    @property
    def hit_rate(self) -> float:
        """Hits among requests; 1 without any."""
        return self.hits / self.requests if self.requests else 1.0


def on_demand(needed_BLE: Flags, memory: Memory, *, look_ahead: bool = False) -> Served:
    """Load an expert when a layer asks for it, and drop another for it.

    Args:
        needed_BLE: which experts each step needs.
        memory: that serves them.
        look_ahead: drop the expert that is needed again last, for which the future must be known
            (Belady 1966); no other way to load on demand hits more. Else the one that was used
            longest ago.
    """
    requests = _requests(needed_BLE)
    after = _next_uses(requests)
    kept: dict[Place, int] = {}  # when it was used last, or is needed next
    hits = 0
    for now, place in enumerate(requests):
        if place in kept:
            hits += 1
        elif len(kept) == memory.slots:
            del kept[(max if look_ahead else min)(kept, key=kept.__getitem__)]
        kept[place] = after[now] if look_ahead else now
    loads = len(requests) - hits
    return Served(len(requests), hits, loads, loads * memory.load + len(requests) * memory.compute)


def _requests(needed_BLE: Flags) -> list[Place]:
    return [(int(layer), int(expert)) for _, layer, expert in np.argwhere(needed_BLE)]


def _next_uses(requests: list[Place]) -> list[int]:
    """For each request, when the same expert is asked for again."""
    seen: dict[Place, int] = {}
    after = [0] * len(requests)
    for now in range(len(requests) - 1, -1, -1):
        after[now] = seen.get(requests[now], len(requests))
        seen[requests[now]] = now
    return after


def fetched_ahead(needed_BLE: Flags, predicted_BLE: Flags, memory: Memory) -> Served:
    """Bring predicted experts in before their layer, and the others when they are missed.

    In each step, slots are allotted to layers in proportion to the experts predicted for them and
    filled in the order of the layers. When a layer has run its slots are free again, and go to what
    else is predicted for later layers. An expert that is missed is loaded before all others; it
    takes the slot of one that is not waited for, or of the one whose layer is furthest.

    Args:
        needed_BLE: which experts each step needs.
        predicted_BLE: which are expected. The needed ones themselves: what a perfect prediction
            would give.
        memory: that serves them.

    Raises:
        InputError: predictions of another shape.
    """
    if needed_BLE.shape != predicted_BLE.shape:
        raise InputError(
            f"predictions must have the shape of the needs, {needed_BLE.shape}, "
            f"got {predicted_BLE.shape}"
        )
    shelf = _Shelf(memory)
    requests = hits = 0
    for needed_LE, predicted_LE in zip(needed_BLE, predicted_BLE, strict=True):
        shelf.expect(predicted_LE)
        for layer, needed_E in enumerate(needed_LE):
            asked = [(layer, int(expert)) for expert in np.flatnonzero(needed_E)]
            requests, hits = requests + len(asked), hits + shelf.run(layer, asked)
    return Served(requests, hits, shelf.loads, shelf.clock)


def allot(predicted_LE: Flags, slots: int) -> Ids:
    """(L,) slots of each layer, in proportion to the experts predicted for it.

    Fractions go to the layers with the largest; no layer gets more than it has predictions.
    """
    wish_L = predicted_LE.sum(axis=1)
    share_L: Numbers = wish_L * min(1.0, slots / max(int(wish_L.sum()), 1))
    found = np.floor(share_L + 1e-9).astype(np.int64)
    spare = min(slots, int(wish_L.sum())) - int(found.sum())
    found[np.argsort(found - share_L, kind="stable")[:spare]] += 1
    return found


class _Shelf:
    """Slots, a channel and a clock. What is waited for is not given up unless it must be."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.clock = self.channel = 0.0  # now, and when the channel is free
        self.loads = 0
        self.arrival: dict[Place, float] = {}  # of what has a slot
        self.used: dict[Place, float] = {}
        self.queue: deque[Place] = deque()
        self.awaited: set[Place] = set()

    def expect(self, predicted_LE: Flags) -> None:
        """A new step: what is waited for, and in which order it is fetched."""
        share_L = allot(predicted_LE, self.memory.slots)
        first: list[Place] = []
        rest: list[Place] = []
        for layer, row in enumerate(predicted_LE):
            places = [(layer, int(expert)) for expert in np.flatnonzero(row)]
            # What lies there already takes its layer's slots first.
            places.sort(key=lambda place: place not in self.arrival)
            first += places[: share_L[layer]]
            rest += places[share_L[layer] :]
        self.awaited = {*first, *rest}
        self.queue = deque([*first, *sorted(rest)])

    def run(self, layer: int, asked: list[Place]) -> int:
        """Run these experts of a layer, those that lie there first; how many did."""
        self._fetch()
        begin = self.clock
        there = [place for place in asked if self.arrival.get(place, np.inf) <= begin]
        missing = [place for place in asked if place not in there]
        self.awaited = {place for place in self.awaited if place[0] > layer} | set(asked)
        for place in [*there, *missing]:
            if place not in self.arrival:
                self._load(place, begin, must=True)
            self.clock = max(self.clock, self.arrival[place]) + self.memory.compute
            self.used[place] = self.clock
            self.awaited.discard(place)
        self._fetch()
        return len(there)

    def _fetch(self) -> None:
        """Go on loading what is waited for, up to now; the last load may still be under way."""
        while self.queue and self.channel <= self.clock:
            place = self.queue[0]
            needed = place in self.awaited and place not in self.arrival
            if needed and not self._load(place, self.channel, must=False):
                self.channel = max(self.channel, self.clock)  # no slot before a layer has run
                return
            self.queue.popleft()

    def _load(self, place: Place, earliest: float, *, must: bool) -> bool:
        if len(self.arrival) >= self.memory.slots:
            victim = self._victim(must)
            if victim is None:
                return False
            del self.arrival[victim]
        self.channel = max(self.channel, earliest) + self.memory.load
        self.arrival[place] = self.channel
        self.loads += 1
        return True

    def _victim(self, must: bool) -> Place | None:
        idle = [place for place in self.arrival if place not in self.awaited]
        if idle:
            return min(idle, key=lambda place: self.used.get(place, -1.0))
        return max(self.arrival) if must else None
