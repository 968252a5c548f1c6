"""The client's side of one exchange, over ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

from pointsman.serve.refusal import RefusalError
from pointsman.serve.wire import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGoneError(Exception):
    """The client closed its connection before it had its answer."""


class Client:
    """Reads the request of a client and writes its answer.

    Args:
        scope: of the ASGI connection.
        receive: of the same.
        send: of the same.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: Headers = scope["headers"]
        peer = scope.get("client")
        self.address = str(peer[0]) if peer else ""
        self.started = False
        self._receive, self._send = receive, send

    def header(self, name: bytes) -> str | None:
        """Value of a header that may come once.

        Raises:
            RefusalError: it comes more than once.
        """
        found = [value for each, value in self.headers if each == name]
        if len(found) > 1:
            raise RefusalError(400, f"the header {name.decode()} comes more than once")
        return found[0].decode("latin-1") if found else None

    async def body(self, limit: int, seconds: float) -> bytes:
        """The whole body.

        Raises:
            RefusalError: it is over `limit` bytes or late.
            ClientGoneError: it never came.
        """
        said = self.header(b"content-length")
        if said is not None and said.isdigit() and int(said) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(part)
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise RefusalError(408, f"the body must arrive within {seconds:g} s") from None

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, more: bool = True) -> None:
        """Send a piece of the answer's body; waits while the client is slow to read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer at once."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.write(body, more=False)

    async def refuse(self, refusal: RefusalError, headers: Headers | None = None) -> None:
        """Send a refusal; a body that was too large or late is not waited for."""
        close: Headers = [(b"connection", b"close")] if refusal.status in (408, 413) else []
        more = [*refusal.headers(), *close, *(headers or [])]
        await self.answer(refusal.status, more, refusal.body())

    def watch(self) -> "Watch":
        """A block that ends with `ClientGoneError` as soon as the client is; the body was read."""
        return Watch(self._receive)


class Watch:
    """Cancels what runs inside it when the client closes its connection.

    The last thing inside it must be the end of the answer, after which the server reports the
    client gone as well.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Self:
        inside = asyncio.current_task()
        assert inside is not None
        self._inside = inside
        self._watching = asyncio.create_task(self._until_gone())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.cancel()
        if self._gone and self._inside.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientGoneError from None

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._inside.cancel()


def _too_large(limit: int) -> RefusalError:
    return RefusalError(413, f"a body may have {limit:,} bytes at most", code="body_too_large")
