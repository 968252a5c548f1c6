"""One upstream model: its address, its key, its limits, and how its failures are read."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pointsman import __version__
from pointsman.serve.config import Model, secret
from pointsman.serve.limits import Breaker, Slots
from pointsman.serve.wire import Headers, Pool, Reply, WireError

# Of a client's headers only these go upstream: its key and all else stays here.
FORWARDED = (b"openai-beta", b"traceparent", b"tracestate")

# Statuses that another try, here or elsewhere, may mend. Other errors are the request's own.
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
ELSEWHERE = frozenset({401, 402, 403, 404, 405})  # our key, credit or configuration


class AttemptError(Exception):
    """A call gave no answer.

    Args:
        reason: in words, for logs and headers.
        again: the same model may be tried again.
        sent: the upstream may have worked on it, and may charge for it.
        wait: seconds that the upstream asks to be left alone for.
        status: that it answered with, or None.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool,
        sent: bool = False,
        wait: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.again, self.sent = reason, again, sent
        self.wait, self.status = wait, status


class Upstream:
    """A model behind an OpenAI-compatible API.

    Args:
        name: of the model, as the policy knows it.
        model: its configuration.
        folder: from which the paths in it are meant.
    """

    def __init__(self, name: str, model: Model, folder: Path = Path()) -> None:
        self.name, self.model = name, model
        parts = urlsplit(model.base_url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None
        self.pool = Pool(parts.hostname, parts.port or (443 if secure else 80), secure)
        self.slots = Slots(model.max_concurrency, model.queue, model.queue_seconds)
        self.breaker = Breaker(model.breaker_failures, model.breaker_seconds, time.monotonic)
        key = secret(model.api_key, folder)
        lines = [
            f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1",
            f"host: {parts.netloc}",
            f"user-agent: pointsman/{__version__}",
            "accept-encoding: identity",
            "content-type: application/json",
        ]
        if key is not None:
            lines.append(f"authorization: Bearer {key}")
        self._head = ("\r\n".join(lines) + "\r\n").encode()

    @property
    def upstream_name(self) -> str:
        """What the upstream calls the model."""
        return self.model.upstream or self.name

    async def call(self, body: bytes, headers: Headers, seconds: float) -> Reply:
        """Ask once, and give the answer if it is one; the caller holds a slot and closes it.

        Args:
            body: of the request.
            headers: more of its headers, see `forwarded`.
            seconds: that are left for the whole answer.

        Raises:
            AttemptError: there is no answer, or one that another model may do better than. An
                error that is the request's own fault is an answer.
        """
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        data = b"%b%bcontent-length: %d\r\n\r\n%b" % (self._head, head, len(body), body)
        model = self.model
        with self.breaker.attempt():
            try:
                reply = await self.pool.exchange(
                    data,
                    connect=model.connect_seconds,
                    first=model.first_seconds,
                    idle=model.idle_seconds,
                    total=min(seconds, model.total_seconds),
                )
            except WireError as error:
                self.breaker.failed()
                sent = error.stage == "answer"
                raise AttemptError(error.reason, again=True, sent=sent) from None
            return await self._judge(reply)

    async def _judge(self, reply: Reply) -> Reply:
        status = reply.status
        if status in AGAIN or status in ELSEWHERE or status >= 500 or 300 <= status < 400:
            wait = retry_after(reply.headers)
            await _drain(reply)
            if status == 429:
                self.breaker.rest(0.0 if wait is None else wait)
            elif status not in (404, 405, 408, 409, 425):
                self.breaker.failed()
            again = status in AGAIN or status >= 500
            raise AttemptError(f"status {status}", again=again, wait=wait, status=status)
        return reply


def forwarded(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Those of a client's headers that go upstream."""
    return [(name, value) for name, value in headers if name in FORWARDED]


def retry_after(headers: Headers) -> float | None:
    """Seconds of a Retry-After header; dates are not read."""
    for name, value in headers:
        if name == b"retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if 0 <= seconds < 86_400 else None
    return None


async def _drain(reply: Reply) -> None:
    """Read a short answer to its end, so that its connection is kept."""
    try:
        async with asyncio.timeout(1.0):
            await reply.read(65_536)
    except (WireError, TimeoutError):
        pass
    finally:
        reply.close()


def make_upstreams(
    models: Mapping[str, Model], folder: Path, before: Mapping[str, Upstream]
) -> dict[str, Upstream]:
    """Upstreams of a configuration; one that is configured as before is kept, with its state.

    Keys are read anew, so a model that has one is the same only where the key is.
    """
    found = {}
    for name, model in models.items():
        made = Upstream(name, model, folder)
        old = before.get(name)
        same = old is not None and old.model == model and old._head == made._head
        found[name] = old if same and old is not None else made
    return found
