"""Routers for servers under load: fixed, one step ahead, and learned by double Q-learning.

A request earns the quality of the model that answered, if it is done before its deadline, else
nothing. Sending it to a busy server also delays later ones, which only a learned value sees.

Legend: T tasks, M servers, F features, L steps of load, R steps of rate.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.simulate.serving import Array, Ints, Requests, Seen, Served, Server, serve


def earned(quality: npt.ArrayLike, requests: Requests, served: Served, deadline: float) -> Array:
    """(N,) quality (T, M) of task and server where the deadline was met, else 0."""
    value = np.asarray(quality, dtype=float)[requests.task, served.server]
    return np.where(served.seconds <= deadline, value, 0.0)


class Fixed:
    """Every request to one server: static serving."""

    def __init__(self, server: int) -> None:
        self.server = server

    def choose(self, seen: Seen) -> int:
        """Always the same."""
        return self.server

    def finished(self, request: int, seconds: float) -> None:
        """Nothing is learned."""


class OneStep:
    """The best model for the task that, as loaded now, would be done in time; else the quickest.

    Args:
        servers: M, whose pace it knows.
        quality: (T, M).
        deadline: seconds.
        margin: share of the deadline that the predicted time may take.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        quality: npt.ArrayLike,
        deadline: float,
        *,
        margin: float = 1.0,
    ) -> None:
        self.servers = list(servers)
        self.quality = np.asarray(quality, dtype=float)
        self.deadline = deadline
        self.margin = margin

    def expected(self, load: Sequence[int]) -> list[float]:
        """Seconds that a request of size 1 would take on each server, if no other came."""
        return [
            (1 + max(n + 1 - s.batch, 0) / s.batch) / s.pace(min(n + 1, s.batch))
            for s, n in zip(self.servers, load, strict=True)
        ]

    def choose(self, seen: Seen) -> int:
        """See the class."""
        seconds = self.expected(seen.load)
        within = [m for m, s in enumerate(seconds) if s <= self.margin * self.deadline]
        if not within:
            return int(np.argmin(seconds))
        return max(within, key=lambda m: (self.quality[seen.task, m], -seconds[m]))

    def finished(self, request: int, seconds: float) -> None:
        """Nothing is learned."""


class DoubleQ:
    """Double Q-learning with linear values of what a router sees.

    Two value functions of (task, loads, rate) and server: one picks the best next server, the
    other says what it is worth, and a coin says which of the two learns. Features are indicators
    of each server's load by task, and of the rate by task, so that a value is a sum of M + 1
    weights. A reward belongs to the decision: the update is made when the request is done and the
    next decision's state is known, however late.

    Args:
        servers: M, of which only the number is used.
        quality: (T, M) in [0, 1], known.
        deadline: seconds.
        discount: of the value of the next decision, in [0, 1).
        rate: step of learning of a value on the first stream; a twentieth of it on the last.
        explore: share of random choices at first, which falls to a tenth of it over a fit.
        miss: what a missed deadline counts while learning, 0 or less. Below 0, a deadline is kept
            more surely than the mean quality alone asks for.
        seed: of the coin and of exploring.

    Attributes:
        weights_: (2, M, F) of the two value functions.

    Raises:
        InputError: a number out of range.

    Source: Hasselt, "Double Q-learning" (2010), for the update; Jha et al., "Learned Best-Effort
    LLM Serving" (2024, arXiv 2401.07886), for state, actions and reward, where the values are a
    neural network's with replay and a target network, and a miss earns 0. Here they are linear and
    learned online, which is noisier; a miss below 0 makes up for it.
    """

    steps = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 18)  # a load counts as the last one it reaches
    rates = (0.0, 2.0, 4.0, 7.0, 11.0)

    def __init__(
        self,
        servers: Sequence[Server],
        quality: npt.ArrayLike,
        deadline: float,
        *,
        discount: float = 0.9,
        rate: float = 0.3,
        explore: float = 0.3,
        miss: float = -0.5,
        seed: int = 0,
    ) -> None:
        if not 0 <= discount < 1 or not rate > 0 or not 0 <= explore <= 1 or miss > 0:
            raise InputError(
                "discount must lie in [0, 1), rate above 0, explore in [0, 1] and miss at 0 or "
                f"below, got {discount}, {rate}, {explore} and {miss}"
            )
        self.servers = list(servers)
        self.quality = np.asarray(quality, dtype=float)
        self.deadline = deadline
        self.discount = discount
        self.rate = rate
        self.explore = explore
        self.miss = miss
        self.seed = seed
        tasks, count = self.quality.shape
        self._load_step = np.searchsorted(self.steps, np.arange(self.steps[-1] + 1), "right") - 1
        self._offset = np.arange(count) * len(self.steps) * tasks
        self._rates_from = count * len(self.steps) * tasks
        width = self._rates_from + len(self.rates) * tasks
        self.weights_ = np.zeros((2, count, width))
        self._learning = 0.0
        self._begin(0)

    def _begin(self, seed: int) -> None:
        self._rng = np.random.default_rng([self.seed, seed])
        self._seen: list[Ints] = []
        self._tasks: list[int] = []
        self._taken: list[int] = []
        self._late: dict[int, float] = {}

    def features(self, seen: Seen) -> Ints:
        """(M + 1,) places of the weights that make up a value."""
        tasks = len(self.quality)
        load = self._load_step[np.minimum(seen.load, self.steps[-1])]
        rate = sum(seen.rate >= r for r in self.rates) - 1
        places = self._offset + load * tasks + seen.task
        return np.append(places, self._rates_from + rate * tasks + seen.task)

    def values(self, seen: Seen) -> Array:
        """(M,) mean of both value functions."""
        found: Array = self.weights_[:, :, self.features(seen)].sum(axis=2).mean(axis=0)
        return found

    def choose(self, seen: Seen) -> int:
        """The best valued server; while learning, now and then any."""
        places = self.features(seen)
        if self._learning and self._rng.random() < self._learning:
            server = int(self._rng.integers(len(self.servers)))
        else:
            server = int(self.weights_[:, :, places].sum(axis=(0, 2)).argmax())
        if self._learning:
            self._seen.append(places)
            self._tasks.append(seen.task)
            self._taken.append(server)
            self._learning = max(self._learning * self._fading, 0.1 * self.explore)
            before = len(self._seen) - 2
            if before in self._late:
                self._learn(before, self._late.pop(before))
        return server

    def finished(self, request: int, seconds: float) -> None:
        """While learning, take the reward in as soon as the next decision is known."""
        if not self._learning:
            return
        reward = self.miss
        if seconds <= self.deadline:
            reward = float(self.quality[self._tasks[request], self._taken[request]])
        if request + 1 < len(self._seen):
            self._learn(request, reward)
        else:
            self._late[request] = reward

    def _learn(self, decision: int, reward: float) -> None:
        learner = int(self._rng.random() < 0.5)
        following = self.weights_[:, :, self._seen[decision + 1]].sum(axis=2)
        best = following[learner].argmax()
        target = reward + self.discount * following[1 - learner, best]
        row = self.weights_[learner, self._taken[decision]]
        places = self._seen[decision]
        row[places] += self._step * (target - row[places].sum()) / len(places)

    def fit(self, streams: Sequence[Requests]) -> Self:
        """Learn from simulated streams of requests, run once each, in order."""
        self.weights_[:] = self.quality.mean() / (1 - self.discount) / (len(self.servers) + 1)
        count = sum(len(stream.arrival) for stream in streams)
        self._fading = 0.1 ** (1.0 / max(count, 1))
        self._learning = self.explore
        for turn, stream in enumerate(streams):
            learning = self._learning
            self._begin(turn)
            self._learning = learning
            self._step = self.rate * 0.05 ** (turn / max(len(streams) - 1, 1))
            serve(self.servers, stream, self)
        self._learning = 0.0
        return self
