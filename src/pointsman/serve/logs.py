"""The log: one line of JSON for everything that happens, on standard error.

No text of a prompt or an answer is in it unless asked for, and never a key: a client is named by
the number of its key. What comes from a client cannot break out of its line, since JSON escapes it.
"""

import json
import logging
import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")
LONGEST = 20_000  # characters of one text


class JsonLog:
    """Writes events as lines.

    Args:
        stream: to write to; None: standard error.
        level: the least level that is written.
        text: queries are written too.
    """

    def __init__(
        self, stream: TextIO | None = None, level: str = "info", text: bool = False
    ) -> None:
        self.stream, self.text = stream, text
        self._least = LEVELS.index(level)
        self._lock = threading.Lock()

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one line; fields that are None are left out, and `query` unless asked for.

        A stream that cannot be written to is no reason to fail a request: the line is lost.
        """
        if LEVELS.index(level) < self._least:
            return
        if not self.text:
            fields.pop("query", None)
        said = {name: _short(value) for name, value in fields.items() if value is not None}
        line = {"time": _moment(), "level": level, "event": event, **said}
        whole = json.dumps(line, default=str) + "\n"
        stream = self.stream or sys.stderr
        with suppress(OSError, ValueError), self._lock:
            stream.write(whole)
            stream.flush()

    def handler(self) -> logging.Handler:
        """Sends what other libraries log through here."""
        return _Handler(self)


class _Handler(logging.Handler):
    """Turns records of `logging` into events."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        trace = None
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
        level = record.levelname.lower()
        level = level if level in LEVELS else "error"
        self.log.write(
            "log", level, logger=record.name, message=record.getMessage(), traceback=trace
        )


def _moment() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST:
        return value[:LONGEST] + "…"
    if isinstance(value, float):
        return round(value, 9)
    return value
