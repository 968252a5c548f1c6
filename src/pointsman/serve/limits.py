"""How much an upstream is asked at once, and when it is left alone."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal


class BusyError(Exception):
    """All slots are taken and the queue is full, or the wait in it took too long."""


class Slots:
    """So many requests at once, so many more that wait in order, and no more.

    Args:
        at_once: requests that run.
        queue: requests that wait.
        seconds: that one waits at most.
    """

    def __init__(self, at_once: int, queue: int, seconds: float) -> None:
        self.at_once, self.queue, self.seconds = max(1, at_once), queue, seconds
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more would be turned away."""
        return self.running >= self.at_once and self.waiting >= self.queue

    async def take(self) -> None:
        """Wait for a slot, which `give` must hand back.

        Raises:
            BusyError: the queue is full, or the wait took too long.
        """
        if self.running < self.at_once and not self._waiting:
            self.running += 1
            return
        if self.full:
            raise BusyError
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give()  # the slot had just been handed over
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise BusyError from None
            raise

    def give(self) -> None:
        """Hand a slot back: to the first that waits, if any does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1


class Breaker:
    """Leaves an upstream alone for a while after so many failures in a row.

    "closed": requests pass. "open": none does. "probing": the time is over, and one request at a
    time may try; the first that succeeds closes it, one that fails opens it for twice as long.

    Args:
        failures: in a row.
        seconds: for which it stays open the first time.
        longest: seconds for which it ever does.
        clock: seconds.
    """

    def __init__(
        self,
        failures: int,
        seconds: float,
        clock: Callable[[], float],
        longest: float = 120.0,
    ) -> None:
        self.failures, self.seconds, self.longest = max(1, failures), seconds, longest
        self.clock = clock
        self._failed = 0
        self._opened = 0
        self._until = 0.0
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """What it does now."""
        if self._until > self.clock():
            return "open"
        return "probing" if self._opened else "closed"

    @property
    def passes(self) -> bool:
        """Whether a request may be tried now."""
        if self.state == "probing":
            return not self._probing
        return self.state == "closed"

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one try, so that a single one probes."""
        probing = self.state == "probing"
        if probing:
            self._probing = True
        try:
            yield
        finally:
            if probing:
                self._probing = False

    def succeeded(self) -> None:
        """The upstream answered."""
        self._failed = self._opened = 0

    def failed(self) -> None:
        """It did not, for a reason of its own."""
        self._failed += 1
        if self._opened or self._failed >= self.failures:
            rest = min(self.longest, self.seconds * 2.0**self._opened)
            self._opened += 1
            self._failed = 0
            self._until = self.clock() + rest

    def rest(self, seconds: float) -> None:
        """The upstream asked to be left alone for so long."""
        self._until = max(self._until, self.clock() + min(seconds, self.longest))


class Guesses:
    """Counts wrong keys by address, so that guessing is slow.

    Args:
        per_minute: wrong keys after which an address is turned away.
        clock: seconds.
        addresses: remembered at most; the longest unseen is forgotten first.
    """

    def __init__(
        self, per_minute: int, clock: Callable[[], float], addresses: int = 10_000
    ) -> None:
        self.per_minute, self.clock, self.addresses = max(1, per_minute), clock, addresses
        self._full_at: dict[str, float] = {}

    def wait(self, address: str) -> float:
        """Seconds for which the address is turned away; 0: it is not."""
        full_at = self._full_at.get(address)
        if full_at is None:
            return 0.0
        return max(0.0, full_at + 60.0 / self.per_minute - self.clock() - 60.0)

    def wrong(self, address: str) -> None:
        """The address tried a wrong key."""
        now = self.clock()
        full_at = max(self._full_at.pop(address, now), now) + 60.0 / self.per_minute
        self._full_at[address] = full_at
        if len(self._full_at) > self.addresses:
            del self._full_at[next(iter(self._full_at))]
