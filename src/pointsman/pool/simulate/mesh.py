"""Nodes that each run several language models, one iteration of one of them at a time.

An iteration is the prefill of one request, which yields its first token, or one token for every
request of a model that has been prefilled. Each token has a time at which it is due. Which
iteration comes next, which requests are taken in and on which node is what is tried here.

Legend: M models, N requests, V nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.simulate.memory import StepMemory


@dataclass(frozen=True)
class Profile:
    """Seconds that iterations take on a node, linear in what was measured.

    Args:
        prefill: fixed seconds of a prefill.
        prefill_token: for each token of the input.
        decode: fixed seconds of an iteration that decodes.
        decode_request: for each request in it.
        decode_token: for each token of their contexts.
    """

    prefill: float = 0.02
    prefill_token: float = 1e-4
    decode: float = 0.02
    decode_request: float = 1e-3
    decode_token: float = 1e-6


class Request(NamedTuple):
    """What is asked for: `first` and `each` are seconds until the first and each later token."""

    arrival: float
    model: int
    input: int
    output: int
    first: float = 1.0
    each: float = 0.15


@dataclass
class Job:
    """A request on a node, with the tokens yielded, those yielded late, and since when it waits."""

    number: int
    request: Request
    produced: int = 0
    late: int = 0
    ready: float = 0.0

    @property
    def due(self) -> float:
        """When the next token is due; less the present time, this is the headroom."""
        return self.request.arrival + self.request.first + self.request.each * self.produced


class Turn(NamedTuple):
    """What a node could run next: its unfinished `jobs`, and the model it ran `last`."""

    jobs: Sequence[Job]
    last: int


# The job that decides what is run: its prefill if it has none, else a token for all of its model.
Order = Callable[[Turn], Job]


def least_headroom(turn: Turn) -> Job:
    """The job whose next token is due first, by the tokens already yielded."""
    return min(turn.jobs, key=lambda job: (job.due, job.number))


def first_come(turn: Turn) -> Job:
    """The job that has waited longest since it arrived or last yielded a token."""
    return min(turn.jobs, key=lambda job: (job.ready, job.number))


def round_robin(turn: Turn) -> Job:
    """The next model in turn; in it a prefill, if one waits, before decoding."""
    count = 1 + max(max(job.request.model for job in turn.jobs), turn.last)
    return min(
        turn.jobs,
        key=lambda job: ((job.request.model - turn.last - 1) % count, job.produced > 0, job.number),
    )


class Node:
    """One machine.

    Args:
        order: which job decides what is run.
        profile: of its speed.
        memory: of the models on it, or None for as much as they like.
        admission: take only what, simulated ahead, makes no token late, its own or another's.
        margin: predicted times are taken so much longer when simulating ahead, 1 or more.
        slower: actual over predicted times; 1 is exact.

    Attributes:
        now: end of the latest iteration, in seconds.
        jobs: unfinished.

    Raises:
        InputError: a margin below 1, or `slower` not above 0.

    Source: Xu et al., "LLM-Mesh: Enabling Elastic Sharing for Serverless LLM Inference" (2025,
    arXiv 2507.00507), from descriptions. Settled here: the length of the output is known; resizing
    memory takes no time; an instance is never moved to make room for a larger one.
    """

    def __init__(
        self,
        order: Order = least_headroom,
        profile: Profile = Profile(),
        *,
        memory: StepMemory | None = None,
        admission: bool = True,
        margin: float = 1.0,
        slower: float = 1.0,
    ) -> None:
        if not margin >= 1 or not slower > 0:
            raise InputError(
                f"margin must be 1 or more and slower above 0, got {margin} and {slower}"
            )
        self.order = order
        self.profile = profile
        self.memory = memory
        self.admission = admission
        self.margin = margin
        self.slower = slower
        self.now = 0.0
        self.jobs: list[Job] = []
        self._last = 0

    def load(self, model: int) -> int:
        """Unfinished requests of a model."""
        return sum(job.request.model == model for job in self.jobs)

    def advance(self, until: float) -> list[Job]:
        """Run iterations that begin before `until`; the jobs that were finished."""
        finished = []
        while self.jobs and self.now < until:
            seconds, batch = self._next(self.jobs, self._last)
            self._last = batch[0].request.model
            self.now += self.slower * seconds
            finished += _yield_tokens(self.jobs, batch, self.now)
        if until < inf:
            self.now = max(self.now, until)
        if self.memory:
            for job in finished:
                self.memory.release(job.request.model, job.request.input + job.request.output)
        return finished

    def admit(self, number: int, request: Request) -> bool:
        """Take a request, if memory allows it and, with admission, if no token will be late."""
        job = Job(number, request, ready=request.arrival)
        size = request.input + request.output
        if self.memory and not self.memory.fits(request.model, size):
            return False
        if self.admission and not self._in_time(job):
            return False
        if self.memory:
            self.memory.reserve(request.model, size)
        self.jobs.append(job)
        return True

    def _in_time(self, job: Job) -> bool:
        jobs, now, last = [replace(j) for j in (*self.jobs, job)], self.now, self._last
        lost = {j.number for j in jobs if j.late}  # cannot be made late again
        while jobs:
            seconds, batch = self._next(jobs, last)
            now += self.margin * seconds
            last = batch[0].request.model
            _yield_tokens(jobs, batch, now)
            if any(j.late and j.number not in lost for j in batch):
                return False
        return True

    def _next(self, jobs: Sequence[Job], last: int) -> tuple[float, list[Job]]:
        """Predicted seconds of the next iteration, and the jobs in it."""
        job, speed = self.order(Turn(jobs, last)), self.profile
        if not job.produced:
            return speed.prefill + speed.prefill_token * job.request.input, [job]
        batch = [j for j in jobs if j.produced and j.request.model == job.request.model]
        context = sum(j.request.input + j.produced for j in batch)
        seconds = speed.decode + speed.decode_request * len(batch) + speed.decode_token * context
        return seconds, batch


def _yield_tokens(jobs: list[Job], batch: Sequence[Job], now: float) -> list[Job]:
    """A token for each job of the batch; those that are done leave `jobs`."""
    done = []
    for job in batch:
        job.late += now > job.due + 1e-9
        job.produced += 1
        job.ready = now
        if job.produced >= job.request.output:
            jobs.remove(job)
            done.append(job)
    return done


class Outcome(NamedTuple):
    """`node` (N,) that took each request, -1 for none; `met` (N,): taken, and no token late."""

    node: npt.NDArray[np.int64]
    met: npt.NDArray[np.bool_]


def run_mesh(
    nodes: Sequence[Node],
    requests: Sequence[Request],
    *,
    homes: Sequence[Sequence[int]] | None = None,
) -> Outcome:
    """Offer each request to the nodes in turn, and run all that are taken to their end.

    The node with the most requests of that model comes first, so that instances little used drain
    and give their memory back; among equals, the one with the fewest requests in all.

    Args:
        nodes: V, just made.
        requests: N in order of arrival.
        homes: (M,) nodes on which each model may run; all of them by default.
    """
    taken = np.full(len(requests), -1, dtype=np.int64)
    late = np.zeros(len(requests), dtype=np.int64)

    def advance(until: float) -> None:
        for node in nodes:
            for job in node.advance(until):
                late[job.number] = job.late

    for number, request in enumerate(requests):
        advance(request.arrival)
        allowed = range(len(nodes)) if homes is None else homes[request.model]
        for v in sorted(allowed, key=lambda v: (-nodes[v].load(request.model), len(nodes[v].jobs))):
            if nodes[v].admit(number, request):
                taken[number] = v
                break
    advance(inf)
    return Outcome(taken, (taken >= 0) & (late == 0))


def draw_requests(
    count: int, rate: float, share: Sequence[float], rng: np.random.Generator
) -> list[Request]:
    """Poisson arrivals: inputs of 50 to 500 tokens, outputs of 10 to 60, models by `share` (M,).

    One in two is in a hurry: its first token is due in 0.5 s and then one each 0.1 s. The others
    wait 2 s, and 0.25 s.
    """
    arrival = rng.exponential(1.0 / rate, size=count).cumsum()
    model = rng.choice(len(share), size=count, p=share)
    sizes = rng.integers([50, 10], [501, 61], size=(count, 2))
    due = np.where(rng.random((count, 1)) < 0.5, [0.5, 0.1], [2.0, 0.25])
    return [
        Request(float(t), int(m), int(i), int(o), float(first), float(each))
        for t, m, (i, o), (first, each) in zip(arrival, model, sizes, due, strict=True)
    ]
