"""The first device: run a network with its later parts on another device, and measure every cut.

Legend: n inputs of a batch, C classes.
"""

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pointsman.depth.splitting.cuts import (
    Device,
    Half,
    Pipeline,
    cut_number,
    part_mflops,
    parts_of,
)
from pointsman.depth.splitting.link import Connection, Link
from pointsman.depth.splitting.partner import Address, announce, partner
from pointsman.depth.splitting.wire import PartnerError, pack
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.modules import evaluating

IN_FLIGHT = 8
PROBES = (1 << 8, 1 << 14, 1 << 16, 1 << 18)  # bytes


class Split:
    """A network whose first parts run here and the others at an address; used in a `with`.

    The same answers as from the whole network, bit by bit where both devices compute alike.

    Args:
        network: a Trunk, the same as on the second device; in evaluation mode while it runs.
        address: of the second device.
        example: a batch, which tells a slower device how long to take.
        link: shapes the line on both sides; None: as fast as it is.
        first: this device.
        second: the other one.
        patience: seconds without a sign of the other side before giving up.

    Raises:
        PartnerError: nobody is there, or with another network.
    """

    def __init__(
        self,
        network: Trunk,
        address: Address,
        *,
        example: Any,
        link: Link | None = None,
        first: Device | None = None,
        second: Device | None = None,
        patience: float = 60.0,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(
                f"a network to split is a Trunk and a module, got {type(network).__name__}"
            )
        self.network, self.module, self.device = network, network, first or Device()
        self.link = link or Link()
        self._mflops = part_mflops(network, example) if self.device.speed is not None else None
        try:
            line = socket.create_connection(address, timeout=patience)
        except OSError as error:
            raise PartnerError(
                f"nobody answers at {address[0]}:{address[1]} ({error}): start `serve` there first"
            ) from error
        self.connection = Connection(line, self.link, patience)
        self.connection.send(announce(network, example, self.link, second or Device()))
        try:
            self.connection.receive()
        except PartnerError:
            self.connection.close()
            raise

    def run(self, x: Any, cut: str | int) -> Any:
        """Logits (n, ..., C) of one batch; on the CPU where they came over the line.

        Args:
            x: a batch.
            cut: name or number of parts that run here, see `parts_of`.

        Raises:
            InputError: there is no such cut.
            PartnerError: the other side went away or failed.
        """
        return next(iter(self.stream([x], cut)))

    def stream(
        self, batches: Iterable[Any], cut: str | int, in_flight: int = IN_FLIGHT
    ) -> Iterator[Any]:
        """Logits of batches in their order, the two devices and the line working at once.

        Args:
            batches: any number of them.
            cut: as for `run`.
            in_flight: batches that may be on their way; with a long round trip, fewer than
                round trip over the slowest stage's time leave that stage waiting.

        Raises:
            InputError: there is no such cut.
            PartnerError: the other side went away or failed.
        """
        for state, _ in self._answers(batches, cut, in_flight):
            yield state

    def _answers(
        self, batches: Iterable[Any], cut: str | int, in_flight: int = IN_FLIGHT
    ) -> Iterator[tuple[Any, float]]:
        """As `stream`, each with the moment at which it was there."""
        half, c = self._half(cut), cut_number(self.network, cut)
        if c == len(self.network.names) + 2:  # all parts are here
            for x in batches:
                yield self._local(half, x), time.perf_counter()
            return
        waiting: deque[int] = deque()
        for number, x in enumerate(batches):
            state = self._local(half, x)
            self.connection.send(pack("run", state, parts=c, number=number))
            waiting.append(number)
            if len(waiting) >= max(in_flight, 1):
                yield self._answer(waiting)
        while waiting:
            yield self._answer(waiting)

    @torch.no_grad()
    def _local(self, half: Half, x: Any) -> Any:
        with evaluating(self.module):
            return half(x)

    def _answer(self, waiting: deque[int]) -> tuple[Any, float]:
        message = self.connection.receive()
        number = waiting.popleft()
        if message.about.get("number") != number:
            raise PartnerError(
                f"batch {number} was to be answered, the answer is to "
                f"{message.about.get('number')}: read every answer of a stream before the next"
            )
        return message.state, message.moment

    def _half(self, cut: str | int) -> Half:
        c = cut_number(self.network, cut)
        mflops = 0.0 if self._mflops is None else sum(self._mflops[:c])
        return Half(parts_of(self.network)[1][:c], self.device, mflops)

    def probe(self, repeats: int = 5) -> Link:
        """What the line is like: a straight line through the times of echoes of several lengths.

        Args:
            repeats: of each length; their median counts.
        """
        lengths, seconds = [], []
        for length in PROBES:
            pieces = pack("echo", torch.zeros(length, dtype=torch.uint8))
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                self.connection.send(pieces)
                self.connection.receive()
                times.append(time.perf_counter() - start)
            lengths.append(sum(len(piece) for piece in pieces))
            seconds.append(median(times))
        slope, start = np.polyfit(lengths, seconds, 1)
        bandwidth = 1 / float(slope) if slope > 0 else float("inf")
        return Link(bandwidth, max(float(start), 0.0))

    def measure(self, x: Any, cut: str | int, *, batches: int = 8, repeats: int = 3) -> Pipeline:
        """Latency and throughput of one cut, each the median of its runs.

        Args:
            x: a batch (n, ...), sent again and again.
            cut: as for `run`.
            batches: of a run for the throughput, from the first answer to the last.
            repeats: of each run.
        """
        inputs = next((len(leaf) for leaf in tree_leaves(x) if isinstance(leaf, torch.Tensor)), 1)
        latencies, rates = [], []
        self.run(x, cut)  # to warm up
        for _ in range(repeats):
            start = time.perf_counter()
            self.run(x, cut)
            latencies.append(time.perf_counter() - start)
        for _ in range(repeats):
            moments = [moment for _, moment in self._answers([x] * (batches + 1), cut)]
            rates.append(batches * inputs / (moments[-1] - moments[0]))
        name = parts_of(self.network)[0][cut_number(self.network, cut)]
        return Pipeline(name, median(latencies), median(rates))

    def close(self) -> None:
        """Hang up; the second device then waits for the next first one."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def measure_cuts(
    network: Trunk,
    x: Any,
    link: Link,
    *,
    cuts: Sequence[str | int] | None = None,
    first: Device | None = None,
    second: Device | None = None,
    batches: int = 8,
    repeats: int = 3,
) -> list[Pipeline]:
    """Latency and throughput of cuts, measured with two processes on this machine.

    Args:
        network: a Trunk.
        x: a batch (n, ...).
        link: shaped as this, over loopback.
        cuts: names or numbers; None: all.
        first: how fast the first device is; None: as this machine.
        second: likewise.
        batches: of one run for the throughput.
        repeats: runs of each cut; the median counts.

    Raises:
        InputError: there is no such cut.
        PartnerError: the second process failed.
    """
    chosen = range(len(network.names) + 3) if cuts is None else cuts
    with (
        partner(network) as address,
        Split(network, address, example=x, link=link, first=first, second=second) as split,
    ):
        return [split.measure(x, cut, batches=batches, repeats=repeats) for cut in chosen]
