"""A connection over a socket, as slow as it is asked to be.

Bandwidth is shaped where bytes leave, by a token bucket of one piece: a piece goes out when the
pieces before it are paid for. Delay is added where they arrive: a message is kept until half of the
round trip has passed, while others may arrive. So a message of b bytes takes b / bandwidth +
round_trip / 2, and the line is busy for b / bandwidth of it, in either direction. No rights beyond
those of a user are needed, as they would be for the kernel's own shaping.
"""

import math
import queue
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from pointsman.depth.splitting.wire import LENGTH, PartnerError, unpack
from pointsman.errors import InputError
from pointsman.run import State

PIECE = 1 << 14
LARGEST = 1 << 34  # bytes of a message


@dataclass(frozen=True)
class Link:
    """How good the line between the two devices is.

    Attributes:
        bandwidth: bytes per second, in each direction; inf: as fast as it is.
        round_trip: seconds there and back of a message without length, beyond what the line itself
            takes.

    Raises:
        InputError: a bandwidth that is not above 0, or a round trip below 0.
    """

    bandwidth: float = math.inf
    round_trip: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not 0 <= self.round_trip < math.inf:
            raise InputError(
                "a link has a bandwidth above 0 bytes/s and a round trip of at least 0 s, got "
                f"{self.bandwidth} and {self.round_trip}"
            )


@dataclass(frozen=True, eq=False)
class Message:
    """What arrived.

    Attributes:
        kind: of message.
        state: that it carried.
        about: what else it says.
        moment: of `time.perf_counter` at which it was there, delay included.
    """

    kind: str
    state: State
    about: dict[str, Any]
    moment: float


class Connection:
    """Messages over one socket; sending and arriving go on while either side computes.

    Args:
        line: a connected socket, which is closed with the connection.
        link: how slow to be.
        patience: seconds to wait for the other side before giving up.

    Attributes:
        broken: why nothing can be sent or received any more; None while all is well.
    """

    def __init__(self, line: socket.socket, link: Link, patience: float = 60.0) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.settimeout(None)
        self.line, self.link, self.patience = line, link, patience
        self._out: queue.SimpleQueue[Sequence[bytes | memoryview] | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[tuple[float, bytearray | PartnerError]] = queue.SimpleQueue()
        self.broken: PartnerError | None = None
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Hand a message to the line and return at once.

        Raises:
            PartnerError: the line is broken.
        """
        if self.broken is not None:
            raise self.broken
        self._out.put(pieces)

    def receive(self) -> Message:
        """The next message, when its delay is over.

        Raises:
            PartnerError: the other side went away, failed, or said nothing for `patience` seconds.
        """
        if self.broken is not None:
            raise self.broken
        try:
            ready, body = self._in.get(timeout=self.patience)
        except queue.Empty:
            self.broken = PartnerError(
                f"the other side has said nothing for {self.patience:g} s: is it stuck, or is the "
                "line too slow for the state that is sent?"
            )
            raise self.broken from None
        if isinstance(body, PartnerError):
            self.broken = body
            raise body
        wait_until(ready)
        kind, state, about = unpack(body)
        if kind == "failed":
            raise PartnerError(f"the other side failed: {about.get('why')}")
        return Message(kind, state, about, ready)

    def close(self) -> None:
        """Send what is waiting, and hang up."""
        self._out.put(None)
        if self.broken is None:
            self._threads[0].join(self.patience)
        with suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self.line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self) -> None:
        free = time.perf_counter()  # when all that was sent is paid for
        while (pieces := self._out.get()) is not None:
            free = max(free, time.perf_counter())
            try:
                for piece in pieces:
                    view = memoryview(piece)
                    for start in range(0, len(view), PIECE):
                        part = view[start : start + PIECE]
                        free += len(part) / self.link.bandwidth
                        wait_until(free)
                        self.line.sendall(part)
            except OSError as error:
                self._lost(error)
                return

    def _read(self) -> None:
        try:
            while True:
                length = int.from_bytes(self._exactly(LENGTH), "big")
                if length > LARGEST:
                    raise PartnerError(f"a message of {length} bytes: not one of ours")
                body = self._exactly(length)
                self._in.put((time.perf_counter() + self.link.round_trip / 2, body))
        except (OSError, EOFError) as error:
            self._lost(error)
        except PartnerError as error:
            self._in.put((0.0, error))

    def _exactly(self, count: int) -> bytearray:
        found = bytearray(count)
        view, have = memoryview(found), 0
        while have < count:
            got = self.line.recv_into(view[have:])
            if not got:
                raise EOFError("it closed the line")
            have += got
        return found

    def _lost(self, error: Exception) -> None:
        lost = PartnerError(
            f"the other side went away ({error}): start it again and connect anew; answers to what "
            "was sent since the last one are lost"
        )
        self._in.put((0.0, lost))


def wait_until(moment: float) -> None:
    """Sleep until a moment of `time.perf_counter`."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(left)
