"""A lean HTTP/1.1 client: connections that are kept, answers that arrive piece by piece.

Parsed by llhttp through httptools, which the server side uses too. A general client (httpx) spends
about 0.2 ms on every piece of a stream and over 1 ms on every request; this one a tenth of that.
What it leaves out, on purpose: redirects, which are never followed; proxies; cookies; compressed
answers; HTTP/2.
"""

import asyncio
import ssl as tls
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import httptools

Headers = list[tuple[bytes, bytes]]

HEADER_LIMIT = 65_536  # bytes of an answer's headers
PAUSE_AT = 262_144  # bytes that wait to be read, from which on the upstream is held up
KEEP_SECONDS = 30.0  # for which an idle connection is kept


class WireError(Exception):
    """The upstream cannot be reached, or broke off, or is late.

    Args:
        reason: in words.
        stage: "connect": nothing was sent. "answer": the request was sent, so it may have been
            worked on.
    """

    def __init__(self, reason: str, stage: Literal["connect", "answer"]) -> None:
        super().__init__(reason)
        self.reason, self.stage = reason, stage


class Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.fresh = True
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.pieces: deque[bytes] = deque()
        self.failure: str | None = None
        self.started = self.complete = self.ended = False
        self.heard = False
        self._size = self._header_size = 0
        self._until_close = True
        self._paused = self._keep = False

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Something arrived."""
        if self.ended or self.idle_since:
            self.close()  # an upstream that speaks out of turn
            return
        self.heard = True
        if not self.started:
            self._header_size += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"no proper answer ({type(error).__name__})")
        if not self.started and self._header_size > HEADER_LIMIT:
            self._fail("headers over the limit")
        if self._size > PAUSE_AT and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.closed = True
        if self.started and self._until_close and not self.complete:
            self.complete = True  # an answer without a length ends where the connection does
        elif not self.complete:
            self.failure = self.failure or "the connection was closed"
        self._wake()

    # Called by the parser

    def on_message_begin(self) -> None:
        """An answer begins; one after the answer that was asked for ends the connection's use."""
        if self.complete:
            self._keep = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self.complete:
            return
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._until_close = False
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """All headers are there."""
        if self.complete:
            return
        self.status = self.parser.get_status_code()
        if self.status < 200:  # such as 100 Continue: the answer is still to come
            self.headers, self._until_close = [], True
            return
        if self.status in (204, 304):
            self._until_close = False
        self.started = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.complete:
            return
        self.pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        """The answer is complete."""
        if self.started and not self.complete:
            self.complete = True
            self._keep = bool(self.parser.should_keep_alive())  # known only here

    # Called by whoever uses it

    def send(self, data: bytes) -> None:
        """Begin an exchange."""
        self._begin()
        self.idle_since = 0.0
        if self.transport is not None:
            self.transport.write(data)

    async def until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait for something.

        Raises:
            WireError: it did not come in time, or the connection broke.
        """
        while not ready():
            if self.failure is not None:
                raise WireError(self.failure, "answer")
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(max(0.0, seconds), self._late, what)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None

    def take(self) -> bytes:
        """All that has arrived of the body."""
        found = self.pieces.popleft() if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self._size = 0
        if self._paused and self.transport is not None:
            self._paused = False
            if not self.closed:
                self.transport.resume_reading()
        return found

    def reusable(self) -> bool:
        """Whether another exchange may follow the one that is complete."""
        return (
            self.complete
            and not self.closed
            and not self._until_close
            and self.failure is None
            and self._keep
        )

    def close(self) -> None:
        """Close at once."""
        self.closed = self.ended = True
        if self.transport is not None:
            self.transport.abort()

    def _late(self, what: str) -> None:
        self._fail(f"no {what} in time")

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self.close()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Reply:
    """An answer whose headers are there and whose body is on its way.

    `close` must be called in the end; a connection whose answer was read to its end is kept.
    """

    def __init__(self, connection: Connection, pool: "Pool", idle: float, deadline: float) -> None:
        self.status, self.headers = connection.status, connection.headers
        self._connection: Connection | None = connection
        self._pool, self._idle, self._deadline = pool, idle, deadline

    async def piece(self, seconds: float | None = None) -> bytes:
        """What arrived next of the body; empty at its end.

        Raises:
            WireError: it broke off, or the wait for it took too long.
        """
        connection = self._connection
        if connection is None:
            return b""
        if not connection.pieces:
            wait = self._idle if seconds is None else seconds
            rest = self._deadline - time.monotonic()
            await connection.until(
                lambda: bool(connection.pieces) or connection.complete,
                min(wait, rest),
                "further piece of the answer",
            )
        if connection.pieces:
            return connection.take()
        self.close()
        return b""

    async def read(self, limit: int, seconds: float | None = None) -> bytes:
        """The whole body.

        Raises:
            WireError: as `piece`, or it is over `limit` bytes.
        """
        parts, size = [], 0
        while piece := await self.piece(seconds):
            parts.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise WireError(f"the answer is over {limit:,} bytes", "answer")
            seconds = None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let the connection go; an answer that is not complete is broken off."""
        if self._connection is not None:
            self._pool.back(self._connection)
            self._connection = None


class Pool:
    """Connections to one address, the last used first.

    Args:
        host: name or address.
        port: number.
        secure: by TLS, with the certificates that the system trusts.
    """

    def __init__(self, host: str, port: int, secure: bool) -> None:
        self.host, self.port = host, port
        self._tls = tls.create_default_context() if secure else None
        self._idle: deque[Connection] = deque()
        self.opened = 0

    async def exchange(
        self, data: bytes, *, connect: float, first: float, idle: float, total: float
    ) -> Reply:
        """Send a request, and wait for the headers of its answer.

        A connection that was kept may have been closed by the other side in the meantime: where
        not a byte came back on it, the request goes out once more on a fresh one.

        Args:
            data: the request, headers and body.
            connect: seconds for a connection.
            first: seconds for the headers.
            idle: seconds between two pieces of the body.
            total: seconds for everything.

        Raises:
            WireError: no connection, or no answer.
        """
        deadline = time.monotonic() + total
        connection = self._kept() or await self._open(min(connect, total))
        try:
            try:
                return await self._headers(connection, data, first, idle, deadline)
            except WireError:
                if connection.fresh or connection.heard or connection.ended:
                    raise
            connection.close()
            connection = await self._open(min(connect, total))
            return await self._headers(connection, data, first, idle, deadline)
        except BaseException:
            connection.close()
            raise

    def back(self, connection: Connection) -> None:
        """Keep a connection, or close it."""
        if connection.reusable():
            connection.fresh = False
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def _headers(
        self, connection: Connection, data: bytes, first: float, idle: float, deadline: float
    ) -> Reply:
        connection.send(data)
        rest = min(first, deadline - time.monotonic())
        await connection.until(lambda: connection.started, rest, "answer")
        return Reply(connection, self, idle, deadline)

    def _kept(self) -> Connection | None:
        now = time.monotonic()
        while self._idle and now - self._idle[0].idle_since > KEEP_SECONDS:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _open(self, seconds: float) -> Connection:
        self.opened += 1
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls, "server_hostname": self.host}
        try:
            async with asyncio.timeout(seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self.host, self.port, **options
                )
        except TimeoutError:
            raise WireError("no connection in time", "connect") from None
        except OSError as error:
            raise WireError(f"no connection ({type(error).__name__})", "connect") from None
        return connection
