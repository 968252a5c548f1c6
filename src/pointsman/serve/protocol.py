"""The server's side of HTTP/1.1: uvicorn's, with limits on headers and on slow clients.

uvicorn bounds neither the size of a request's headers nor the time that they may take, nor does it
leave a client that stops reading its answer. What this adds costs nothing per piece of a stream: a
timer runs only while headers are awaited, or while the client does not read.
"""

import asyncio
from typing import Any, ClassVar, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pointsman.serve.config import Server
from pointsman.serve.refusal import RefusalError


class Limits(NamedTuple):
    """See `pointsman.serve.config.Server`."""

    header_bytes: int
    header_seconds: float
    write_seconds: float


def limits(server: Server) -> Limits:
    """The limits of a configuration."""
    return Limits(server.header_limit, server.header_seconds, server.write_seconds)


class LimitedProtocol(HttpToolsProtocol):
    """One connection of a client.

    Attributes:
        limits: of every connection of the process.
    """

    limits: ClassVar[Limits] = limits(Server())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._in_headers = True
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The client connected: its headers are awaited."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something arrived; headers over the limit end the connection."""
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > self.limits.header_bytes:
            self._refuse(431, f"headers may have {self.limits.header_bytes:,} bytes at most")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers = True
        if self._late is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        """Its headers are there; where they came in one piece with a body their size is summed."""
        self._in_headers, self._header_bytes = False, 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.header_bytes:
            self._refuse(431, f"headers may have {self.limits.header_bytes:,} bytes at most")
            return
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is no proper HTTP request")

    def pause_writing(self) -> None:
        """The client reads more slowly than its answer comes."""
        super().pause_writing()
        seconds = self.limits.write_seconds
        self._stalled = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _await_headers(self) -> None:
        self._late = self.loop.call_later(self.limits.header_seconds, self._headers_late)

    def _headers_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self._refuse(408, f"headers must arrive within {self.limits.header_seconds:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer outside of any request, and close."""
        if self.transport.is_closing():
            return
        self._stop_timers()
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy:  # else the answer under way would be garbled
            refusal = RefusalError(status, message)
            body = refusal.body()
            lines = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d"
            head = STATUS_LINE[status] + lines % len(body)
            self.transport.write(head + b"\r\n\r\n" + body)
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        self._late = self._stalled = None
