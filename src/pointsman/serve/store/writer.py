"""One thread that writes for everybody: what waits while it is busy goes in one transaction.

The event loop never touches the database. It hands operations to the thread, which takes all that
wait, runs them in one transaction, and hands the results back once that is durable (group commit:
the price of a commit is shared by all that wait for it).
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from pointsman.serve.store.operations import Steps
from pointsman.serve.store.records import StoreError

MOST = 512  # operations in one transaction, so that nobody waits long for the commit


class Engine(Protocol):
    """A database that runs operations. All of it is called from the writer's thread only."""

    def open(self) -> None:
        """Connect, and bring the tables to the newest version."""

    def run(self, operations: list["Operation"]) -> list[Any]:
        """Run operations in one transaction.

        Returns:
            For each its result, or the exception that it ended in; exceptions of one operation
            leave the others untouched. When this returns, what was written is durable.
        """

    def close(self) -> None:
        """Disconnect."""


class Operation:
    """Steps that wait for their turn, and the future that waits for them.

    Args:
        steps: makes the steps, anew if the transaction has to be run again.
        keys: ids of the keys whose totals it changes, which an engine may lock.
        requests: ids of the requests that it changes: what concerns one request runs in order.
        reads: it writes nothing, so that it need not keep others from writing.
        unwanted: called with the result, in the event loop, if nobody waits for it any more.

    Attributes:
        again: whether it may have been done already, in a transaction whose end nobody knows.
    """

    __slots__ = ("again", "future", "keys", "reads", "requests", "steps", "unwanted")

    def __init__(
        self,
        steps: Callable[[], Steps[Any]],
        keys: tuple[int, ...] = (),
        requests: tuple[str, ...] = (),
        unwanted: Callable[[Any], None] | None = None,
        reads: bool = False,
    ) -> None:
        self.steps = steps
        self.keys = keys
        self.requests = requests
        self.unwanted = unwanted
        self.reads = reads
        self.again = False
        self.future: asyncio.Future[Any] | None = None


class Writer:
    """The thread, and its queue.

    Args:
        engine: the database.
        beat: called in the thread every `interval` seconds for an operation that says that this
            process lives.
        interval: seconds.
    """

    def __init__(self, engine: Engine, beat: Callable[[], Operation], interval: float) -> None:
        self.engine = engine
        self.beat = beat
        self.interval = interval
        self._queue: SimpleQueue[Operation | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="pointsman-store", daemon=True)

    async def open(self) -> None:
        """Start the thread, and wait until the database is open."""
        self._thread.start()
        await self._opened

    def submit(self, operation: Operation) -> asyncio.Future[Any]:
        """A future of the operation's result.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError("the store is closed: open it again")
        operation.future = self._loop.create_future()
        self._queue.put(operation)
        return operation.future

    async def close(self) -> None:
        """Finish what waits, then end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.shield(self._ended)

    def _run(self) -> None:
        try:
            self.engine.open()
            (failed,) = self.engine.run([self.beat()])
            if isinstance(failed, Exception):
                raise failed
        except Exception as error:
            self._tell(self._opened, error)
        else:
            self._tell(self._opened, None)
            self._work()
        self.engine.close()
        self._tell(self._ended, None)

    def _work(self) -> None:
        due = time.monotonic() + self.interval
        more = True
        while more:
            operations, more = self._waiting(due - time.monotonic())
            if time.monotonic() >= due:
                operations.append(self.beat())
                due = time.monotonic() + self.interval
            if operations:
                results = self.engine.run(operations)
                with suppress(RuntimeError):  # the event loop was closed before the store
                    self._loop.call_soon_threadsafe(_answer, operations, results)

    def _waiting(self, seconds: float) -> tuple[list[Operation], bool]:
        """All operations that wait or come within these seconds, and whether more may come."""
        operations: list[Operation] = []
        try:
            found = self._queue.get(timeout=max(0.0, seconds))
            while found is not None:
                operations.append(found)
                if len(operations) == MOST:
                    return operations, True
                found = self._queue.get_nowait()
        except Empty:
            return operations, True
        return operations, False

    def _tell(self, future: asyncio.Future[None], error: Exception | None) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_finish, future, error)


def _finish(future: asyncio.Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _answer(operations: list[Operation], results: list[Any]) -> None:
    """Hand the results to those who wait, in the event loop."""
    for operation, result in zip(operations, results, strict=True):
        if operation.future is None:
            continue
        if not operation.future.done():
            _finish(operation.future, result)
        elif operation.unwanted is not None and not isinstance(result, Exception):
            operation.unwanted(result)  # whoever waited was cancelled
