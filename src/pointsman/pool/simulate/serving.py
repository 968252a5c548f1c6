"""Servers of several models that batch what they run, and requests that come in bursts.

Every request in a server's batch advances at the same pace, slower the more there are (as
continuous batching of language models does); beyond the largest batch, requests wait in order.
An event is an arrival or a completion, at its exact time.

Legend: T tasks, M servers, N requests.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Server:
    """One model, loaded on its own hardware.

    Args:
        seconds: of a request of size 1 that runs alone.
        slowdown: share of that time which each further request in the batch adds.
        batch: most requests that run together.

    Raises:
        InputError: a number out of range.
    """

    seconds: float
    slowdown: float = 0.15
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not self.slowdown >= 0 or self.batch < 1:
            raise InputError(
                "a server needs seconds above 0, a slowdown of 0 or more and a batch of 1 or more, "
                f"got {self.seconds}, {self.slowdown} and {self.batch}"
            )

    def pace(self, running: int) -> float:
        """Size served per second and request while so many run."""
        return 1.0 / (self.seconds * (1.0 + self.slowdown * (running - 1)))


class Requests(NamedTuple):
    """`arrival` (N,) seconds, rising; `task` (N,); `size` (N,) work, 1 on average."""

    arrival: Array
    task: Ints
    size: Array


def bursts(
    count: int,
    rates: Sequence[float],
    rng: np.random.Generator,
    *,
    stay: float = 20.0,
    tasks: int = 3,
    spread: float = 0.3,
) -> Requests:
    """A Markov-modulated Poisson process: the rate jumps to another of `rates` now and then.

    Args:
        count: N.
        rates: requests per second; one of them gives a Poisson process.
        rng: source of all draws.
        stay: mean seconds at one rate.
        tasks: T, all as frequent.
        spread: standard deviation of the logarithm of the size.

    Raises:
        InputError: a rate that is not above 0.
    """
    if not len(rates) or min(rates) <= 0 or not stay > 0:
        raise InputError(f"rates and stay must be above 0, got {list(rates)} and {stay}")
    at, now, until = int(rng.integers(len(rates))), 0.0, rng.exponential(stay)
    arrival = np.empty(count)
    for i in range(count):
        while True:
            gap = rng.exponential(1.0 / rates[at])
            if len(rates) == 1 or now + gap <= until:
                break
            now, until = until, until + rng.exponential(stay)
            at = (at + int(rng.integers(1, len(rates)))) % len(rates)
        now += gap
        arrival[i] = now
    size = np.exp(spread * rng.normal(size=count) - spread**2 / 2)
    return Requests(arrival, rng.integers(tasks, size=count), size)


class Seen(NamedTuple):
    """What a router sees: the request's task, `load` (M,) of running and waiting, and the rate."""

    task: int
    load: tuple[int, ...]
    rate: float


class Router(Protocol):
    """Chooses a server for each request, and may learn from what comes of it."""

    def choose(self, seen: Seen) -> int:
        """The server, from 0."""

    def finished(self, request: int, seconds: float) -> None:
        """The request, by its number in order of arrival, was done after so many seconds."""


class Served(NamedTuple):
    """`server` (N,) chosen and `seconds` (N,) from arrival to completion."""

    server: Ints
    seconds: Array


class _Running:
    """A server at work. What has been served so far is one number, as all advance alike."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.served = 0.0  # size that a request running since time 0 would have got
        self.since = 0.0
        self.batch: list[tuple[float, int]] = []  # (served at which it is done, request)
        self.waiting: deque[tuple[int, float]] = deque()

    def advance(self, now: float) -> None:
        if self.batch:
            self.served += (now - self.since) * self.server.pace(len(self.batch))
        self.since = now

    def next(self) -> float:
        """Time of the next completion, if nothing else arrives."""
        if not self.batch:
            return np.inf
        return self.since + (self.batch[0][0] - self.served) / self.server.pace(len(self.batch))

    def add(self, request: int, size: float) -> None:
        if len(self.batch) < self.server.batch:
            heappush(self.batch, (self.served + size, request))
        else:
            self.waiting.append((request, size))

    def complete(self) -> int:
        self.served, request = heappop(self.batch)
        if self.waiting:
            self.add(*self.waiting.popleft())
        return request

    @property
    def load(self) -> int:
        return len(self.batch) + len(self.waiting)


def serve(
    servers: Sequence[Server], requests: Requests, router: Router, *, window: float = 2.0
) -> Served:
    """Run all requests to their end.

    Args:
        servers: M.
        requests: N of them.
        router: asked at each arrival, told of each completion.
        window: seconds over which the arrival rate is estimated.

    Raises:
        InputError: the router named a server that there is not.
    """
    running = [_Running(server) for server in servers]
    chosen = np.empty(len(requests.arrival), dtype=np.int64)
    seconds = np.empty(len(requests.arrival))
    recent: deque[float] = deque()

    def complete(until: float) -> None:
        while True:
            when, m = min((server.next(), m) for m, server in enumerate(running))
            if when > until or when == np.inf:
                return
            running[m].advance(when)
            request = running[m].complete()
            seconds[request] = when - requests.arrival[request]
            router.finished(request, float(seconds[request]))

    for i, now in enumerate(requests.arrival.tolist()):
        complete(now)
        recent.append(now)
        while recent[0] <= now - window:
            recent.popleft()
        load = tuple(server.load for server in running)
        m = router.choose(Seen(int(requests.task[i]), load, len(recent) / window))
        if not 0 <= m < len(servers):
            raise InputError(f"there are servers 0 to {len(servers) - 1}, the router chose {m}")
        chosen[i] = m
        running[m].advance(now)
        running[m].add(i, float(requests.size[i]))
    complete(np.inf)
    return Served(chosen, seconds)
