"""A policy that builds vehicle routes place by place, and learns how from instances of one kind.

Legend: B instances, K samples of each, R = B * K routes being built, N customers, V = N + 1 places,
F features.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.simulate.vehicle_routing import Array, Instance, Ints

# What a place is judged by: distance from here, also by how empty the vehicle is; distance from
# the depot, also by how empty; angle at the depot between here and there; share of the room left
# that it takes; and, for going back to the depot: that it is, with the room left, with the distance
FEATURES = 9
DISTANCE, DEPOT = np.eye(FEATURES)[[0, 6]]


class Built(NamedTuple):
    """`orders` (B, K, N) of customers, `length` (B, K) of the routes as built, and the gradient of
    the log-probability of each by the weights, (B, K, F).
    """

    orders: Ints
    length: Array
    gradient: Array


class _Worlds(NamedTuple):
    """The instances of R rows, scaled: distance (R, V, V), angle (R, V), demand (R, V) as a share
    of the capacity, 0 for the depot.
    """

    distance: Array
    angle: Array
    demand: Array


def _worlds(instances: Sequence[Instance], samples: int) -> _Worlds:
    if len({len(instance.demand) for instance in instances}) != 1:
        raise InputError("instances built together need as many customers each, and at least one")
    distance = np.stack([i.distance for i in instances])
    gap = np.stack([i.places - i.places[0] for i in instances])
    share = np.stack([np.append(0.0, i.demand / i.capacity) for i in instances])
    found = distance, np.arctan2(gap[..., 1], gap[..., 0]), share
    return _Worlds(*(np.repeat(part, samples, axis=0) for part in found))


def _features(worlds: _Worlds, here: Ints, room: Array) -> Array:
    """(R, V, F) of every place."""
    rows, count = np.arange(len(here)), worlds.demand.shape[1]
    scale = np.sqrt(count)  # neighbours are nearer where there are more
    out = np.zeros((len(here), count, FEATURES))
    away, home = worlds.distance[rows, here], worlds.distance[:, 0]
    turn = np.abs(worlds.angle - worlds.angle[rows, here][:, None])
    empty = room[:, None]
    out[..., 0], out[..., 1] = scale * away, scale * away * empty
    out[..., 2], out[..., 3] = scale * home, scale * home * empty
    out[..., 4] = np.where(here == 0, 0.0, np.minimum(turn, 2 * np.pi - turn).T).T
    out[..., 5] = worlds.demand / np.maximum(empty, 1e-9)
    out[:, 0] = 0.0
    out[:, 0, 6], out[:, 0, 7], out[:, 0, 8] = 1.0, room, scale * away[:, 0]
    return out


def build(
    instances: Sequence[Instance],
    weights: Array,
    samples: int,
    rng: np.random.Generator,
    *,
    greedy: bool = False,
) -> Built:
    """Build solutions of each instance by a softmax of weights (F,) times features.

    Args:
        instances: B, with as many customers each.
        weights: (F,)
        samples: K, of each.
        rng: source of the draws.
        greedy: the first sample of each instance always takes the likeliest place.

    Raises:
        InputError: instances of different sizes.
    """
    worlds = _worlds(instances, samples)
    rows, (count, places) = np.arange(len(worlds.demand)), worlds.demand.shape
    first = rows % samples == 0 if greedy else np.zeros(count, dtype=bool)
    here, room = np.zeros(count, dtype=np.int64), np.ones(count)
    open_ = np.ones((count, places), dtype=bool)
    orders, served = np.zeros((count, places), dtype=np.int64), np.zeros(count, dtype=np.int64)
    length, gradient = np.zeros(count), np.zeros((count, FEATURES))
    while (served < places - 1).any():
        going = served < places - 1
        allowed = open_ & (worlds.demand <= room[:, None] + 1e-9)
        allowed[:, 0] = (here != 0) | ~going
        seen = _features(worlds, here, room)
        logit = np.where(allowed, seen @ weights, -np.inf)
        chance = np.exp(logit - logit.max(axis=1, keepdims=True))
        chance /= chance.sum(axis=1, keepdims=True)
        noise = np.where(first[:, None], 0.0, rng.gumbel(size=logit.shape))
        there = np.where(going, (logit + noise).argmax(axis=1), 0)
        step = seen[rows, there] - (chance[:, :, None] * seen).sum(axis=1)
        gradient += np.where(going[:, None], step, 0.0)
        length += worlds.distance[rows, here, there]
        orders[rows, served] = np.where(going, there, orders[rows, served])
        served += going & (there != 0)
        open_[rows, there] = there == 0
        room = np.where(there == 0, 1.0, room - worlds.demand[rows, there])
        here = there
    length += worlds.distance[rows, here, 0]
    shape = len(instances), samples
    return Built(
        orders[:, :-1].reshape(*shape, -1),
        length.reshape(shape),
        gradient.reshape(*shape, FEATURES),
    )


class ConstructionPolicy:
    """A softmax over places, whose weights are tuned by REINFORCE.

    Args:
        samples: K for each instance and update; their mean without one's own is its baseline.
        updates: of the weights.
        rate: step of Adam.
        seed: of the draws.

    Attributes:
        weights_: (F,)
        lengths_: (updates,) mean length at each update.

    Raises:
        InputError: a number out of range.

    Source: Greenberg et al., "Accelerating Vehicle Routing via AI-Initialized Genetic Algorithms"
    (2025, arXiv 2504.06126), where an attention network is trained by PPO on growing instances.
    Here nine weights, and no growth. The baseline is that of Kool et al., "Buy 4 REINFORCE
    Samples, Get a Baseline for Free!" (2019).
    """

    def __init__(
        self, *, samples: int = 8, updates: int = 60, rate: float = 0.2, seed: int = 0
    ) -> None:
        if samples < 2 or updates < 1 or not rate > 0:
            raise InputError(
                "samples must be 2 or more, updates 1 or more and rate above 0, got "
                f"{samples}, {updates} and {rate}"
            )
        self.samples = samples
        self.updates = updates
        self.rate = rate
        self.seed = seed

    def fit(self, instances: Sequence[Instance]) -> Self:
        """Learn from instances (B) of the kind to come; all of them at every update."""
        rng = np.random.default_rng(self.seed)
        self.weights_ = -0.5 * DISTANCE
        mean, square = np.zeros(FEATURES), np.zeros(FEATURES)
        lengths = []
        for update in range(1, self.updates + 1):
            built = build(instances, self.weights_, self.samples, rng)
            shorter = built.length.mean(axis=1, keepdims=True) - built.length
            shorter *= self.samples / (self.samples - 1)
            slope = (shorter[..., None] * built.gradient).mean(axis=(0, 1))
            mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
            step = mean / (1 - 0.9**update) / (np.sqrt(square / (1 - 0.99**update)) + 1e-9)
            self.weights_ = self.weights_ + self.rate * step
            lengths.append(float(built.length.mean()))
        self.lengths_ = np.array(lengths)
        return self

    def seeds(self, instance: Instance, count: int, seed: int = 0) -> Ints:
        """(count, N) orders for one instance: the likeliest, and others drawn."""
        return _greedy_and_drawn(instance, self.weights_, count, seed)


def nearest_neighbour(
    instance: Instance, count: int, *, sharpness: float = 4.0, seed: int = 0
) -> Ints:
    """(count, N) orders that go on to the nearest customer, and to the depot when none fits.

    The first order always does; in the others a customer is likelier the nearer it is, by a softmax
    of -sharpness times distance times sqrt(V).
    """
    return _greedy_and_drawn(instance, -sharpness * DISTANCE - 1e6 * DEPOT, count, seed)


def _greedy_and_drawn(instance: Instance, weights: Array, count: int, seed: int) -> Ints:
    rng = np.random.default_rng(seed)
    orders: Ints = build([instance], weights, count, rng, greedy=True).orders[0]
    return orders
