"""Asking models until one answers: retries with backoff on one, then the next.

An attempt may be repeated as long as not a byte of its answer has been passed on, and what may have
been charged for is counted.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pointsman.serve.bill import Bill
from pointsman.serve.limits import BusyError
from pointsman.serve.prices import estimate, most
from pointsman.serve.refusal import RefusalError, overloaded, upstream_failed
from pointsman.serve.request import ChatRequest
from pointsman.serve.upstream import AttemptError, Upstream
from pointsman.serve.wire import Headers, Reply, WireError

FIRST_WAIT = 0.1  # seconds before the second attempt, doubled from then on
ERROR_LIMIT = 1_000_000  # bytes of an error that is passed on
LONGEST_WAIT = 4.0  # seconds between two attempts; asked for more, the next model is tried


@dataclass(frozen=True)
class Asking:
    """What every attempt of a request shares.

    Args:
        request: of the client.
        headers: that go upstream.
        bill: of the request.
        changes: values of the body that differ upstream, beside the model's name.
        limit: an answer is read whole before it counts as one, and has so many bytes at most; None:
            it counts from its first piece on, and the rest may be passed on as it comes.
    """

    request: ChatRequest
    headers: Headers
    bill: Bill
    changes: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None

    def body(self, upstream: Upstream) -> bytes:
        """The request as this upstream gets it."""
        changed: dict[str, Any] = {"model": upstream.upstream_name, **self.changes}
        if self.request.stream and upstream.model.include_usage and not self.request.wants_usage:
            options = self.request.values.get("stream_options") or {}
            changed["stream_options"] = {**options, "include_usage": True}
        return self.request.with_values(changed)


@dataclass
class Called:
    """An answer that has begun; `close` gives its slot back.

    Args:
        upstream: that answers.
        reply: status, headers, and the body on its way.
        first: piece of the body, or all of it where it was read whole.
        failures: what went wrong before, in words.
    """

    upstream: Upstream
    reply: Reply
    first: bytes
    failures: Sequence[str] = ()
    _open: bool = True

    async def piece(self) -> bytes:
        """What came next of the body; empty at its end.

        Raises:
            WireError: it broke off.
        """
        if self.first:
            piece, self.first = self.first, b""
            return piece
        return await self.reply.piece()

    async def read(self, limit: int) -> bytes:
        """All of the body.

        Raises:
            RefusalError: it broke off, or is over `limit` bytes.
        """
        first, self.first = self.first, b""
        try:
            return first + await self.reply.read(limit)
        except WireError as error:
            raise upstream_failed(f"{self.upstream.name} broke off: {error.reason}") from None

    def close(self) -> None:
        """Break off what is not complete, and give the slot back."""
        if self._open:
            self._open = False
            self.reply.close()
            self.upstream.slots.give()


async def ask(upstreams: Sequence[Upstream], asking: Asking) -> Called:
    """The answer of the first of these models that gives one.

    Raises:
        RefusalError: none does, or the key cannot pay for it.
    """
    failures: list[str] = []
    worst: AttemptError | None = None
    for upstream in upstreams:
        if not upstream.breaker.passes:
            failures.append(f"{upstream.name}: left alone after failures")
            continue
        await asking.bill.reserve(most(asking.request, upstream.model))
        try:
            await upstream.slots.take()
        except BusyError:
            failures.append(f"{upstream.name}: too busy")
            continue
        called = None
        try:
            called = await _attempts(upstream, asking, failures)
            return called
        except AttemptError as failed:
            worst = failed
        finally:
            if called is None:
                upstream.slots.give()
    raise _refusal(failures, worst)


async def _attempts(upstream: Upstream, asking: Asking, failures: list[str]) -> Called:
    """Try one model, and again where that may help.

    Raises:
        AttemptError: of the last attempt.
    """
    body = asking.body(upstream)
    deadline = time.monotonic() + upstream.model.total_seconds
    wait = FIRST_WAIT
    for left in range(upstream.model.retries, -1, -1):
        try:
            reply = await upstream.call(body, asking.headers, deadline - time.monotonic())
            return await _begun(upstream, reply, asking.limit, failures)
        except asyncio.CancelledError:  # the client left while the upstream worked
            asking.bill.add(estimate(asking.request).cost(upstream.model))
            raise
        except AttemptError as failed:
            failures.append(f"{upstream.name}: {failed.reason}")
            if failed.sent:
                asking.bill.add(estimate(asking.request).cost(upstream.model))
            pause = max(wait * random.uniform(0.5, 1.0), failed.wait or 0.0)
            late = time.monotonic() + pause >= deadline
            if not failed.again or left == 0 or pause > LONGEST_WAIT or late:
                raise
            await asyncio.sleep(pause)
            if not upstream.breaker.passes:
                raise
            wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("unreachable")


async def _begun(
    upstream: Upstream, reply: Reply, limit: int | None, failures: Sequence[str]
) -> Called:
    """Wait for the first piece of the body, or for all of it: until then it may be tried again."""
    first_seconds = upstream.model.first_seconds
    try:
        if limit is None and reply.status < 400:
            first = await reply.piece(first_seconds)
        else:
            first = await reply.read(limit or ERROR_LIMIT, first_seconds)
    except WireError as error:
        reply.close()
        upstream.breaker.failed()
        raise AttemptError(error.reason, again=True, sent=True) from None
    except BaseException:
        reply.close()
        raise
    upstream.breaker.succeeded()
    return Called(upstream, reply, first, tuple(failures))


def _refusal(failures: Sequence[str], worst: AttemptError | None) -> RefusalError:
    words = "; ".join(failures[-6:])
    if worst is None:
        return overloaded(f"no model can take the request now ({words}): try again later")
    if worst.status == 429:
        refusal = upstream_failed(f"every model refused for its rate limit ({words})", 429)
        refusal.kind, refusal.code = "rate_limit_error", "rate_limit_exceeded"
        refusal.retry_after = worst.wait or 1.0
        return refusal
    return upstream_failed(f"no model answered ({words})")
