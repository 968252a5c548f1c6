"""Watching a stream of server-sent events pass, and holding back what was not asked for.

Events go on as the bytes that came. Two kinds are held back: the one with the usage, which the
gateway asked for and the client did not, and the last, `data: [DONE]`, until the cost is settled.
"""

import json
import re
from typing import Any

from pointsman.serve.prices import Usage, usage_from

DONE = b"[DONE]"
LONGEST = 4_000_000  # bytes of one event, from which on bytes are passed on without a look
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class Passing:
    """What has been seen of a stream.

    Args:
        hide_usage: the client did not ask for the event with the usage.

    Attributes:
        usage: as the upstream told it, or None.
        pieces: events with data seen: about one a token.
        complete: `[DONE]` came.
    """

    def __init__(self, hide_usage: bool) -> None:
        self.hide_usage = hide_usage
        self.usage: Usage | None = None
        self.pieces = 0
        self.complete = False
        self._rest = b""
        self._last = b""

    def feed(self, piece: bytes) -> bytes:
        """Take what came, and give what may go on now."""
        data = self._rest + piece if self._rest else piece
        if not data.endswith(b"\n\n"):
            end = _last_end(data)
            if end == 0 and len(data) < LONGEST:
                self._rest = data
                return b""
            data, self._rest = data[: end or None], data[end:] if end else b""
        else:
            self._rest = b""
        if DONE not in data and b'"usage"' not in data:
            self.pieces += data.count(b"data:")
            return data
        found = [at for mark in (DONE, b'"usage"') if (at := data.find(mark)) >= 0]
        before = data.rfind(b"\n\n", 0, min(found))
        plain = before + 2 if before >= 0 else 0
        self.pieces += data.count(b"data:", 0, plain)
        events = (event for event in split(data[plain:]) if self._goes_on(event))
        return data[:plain] + b"".join(events)

    def end(self, note: bytes = b"") -> bytes:
        """A note, and what was held back; the stream is over."""
        rest, self._rest = self._rest, b""
        return note + rest + self._last

    def _goes_on(self, event: bytes) -> bool:
        data = payload(event)
        if data is None:
            return True
        if data == DONE:
            self.complete, self._last = True, event
            return False
        self.pieces += 1
        if _USAGE.search(data) is None:
            return True
        value = parsed(data)
        self.usage = usage_from(value.get("usage")) or self.usage
        if value.get("choices"):
            return True
        self.pieces -= 1
        return not self.hide_usage


def split(data: bytes) -> list[bytes]:
    """Events of a stream, with the empty lines that end them; what follows the last is one too."""
    events, at = [], 0
    for found in _END.finditer(data):
        events.append(data[at : found.end()])
        at = found.end()
    return [*events, data[at:]] if at < len(data) else events


def payload(event: bytes) -> bytes | None:
    """The data of an event, or None where it has none, such as a comment."""
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parsed(data: bytes) -> dict[str, Any]:
    """The JSON object in some data; empty where there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def comment(text: str) -> bytes:
    """A line that readers of server-sent events ignore."""
    return f": {text}\n\n".encode()


def failure(message: str) -> bytes:
    """An event that tells the client that the stream broke off."""
    error = {"message": message, "type": "server_error", "param": None, "code": "upstream_failed"}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def _last_end(data: bytes) -> int:
    """Place after the last empty line; 0 where there is none."""
    ends = (b"\n\n", b"\r\n\r\n", b"\r\r")
    return max((at + len(end) for end in ends if (at := data.rfind(end)) >= 0), default=0)
