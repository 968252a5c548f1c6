"""Where a network can be cut in two, and what each cut would cost: the predicted side.

The parts of a `Trunk` are `begin`, its blocks and `finish`. A cut gives the first c parts to the
first device and the others to the second; what crosses is the state between them, whatever it is
made of, so that a skip connection over the cut is sent along. Every place between two parts is a
legal cut. The ends, everything on one device, are the two cuts that a split has to beat.

After Masud et al., "Where to Split? A Pareto-Front Analysis of DNN Partitioning for Edge Inference"
(2026, ParetoPipe, arXiv 2601.08025). With t1, t2 the seconds of the two parts on their devices
(packing and unpacking included), b bytes there and a bytes back,

    latency     t1 + (b + a) / bandwidth + round_trip + t2       of one batch alone
    throughput  batch / max(t1, b / bandwidth, a / bandwidth, t2)    of many, as stages overlap

Where we depart: the answer's way back counts too; a delay holds up no message but the one that it
delays, so the round trip is in the latency alone; and a point that another equals or beats in both
and beats in one is off the front (the paper's code keeps it unless it is beaten in both).

Legend: P parts, c of them on the first device.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import nn

from pointsman.cost import count_flops
from pointsman.depth.splitting.link import Link, wait_until
from pointsman.depth.splitting.wire import pack, size, unpack
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.frontier import Frontier, Point
from pointsman.modules import evaluating

REPEATS = 7


@dataclass(frozen=True)
class Device:
    """How fast one side is.

    Attributes:
        speed: MFLOPs per second of a device that is slower than this machine: each part then takes
            its FLOPs over the speed, the rest is waited out. None: this machine as it is.

    Raises:
        InputError: a speed that is not above 0.
    """

    speed: float | None = None

    def __post_init__(self) -> None:
        if self.speed is not None and not self.speed > 0:
            raise InputError(f"a speed is MFLOPs per second above 0, got {self.speed}")

    def seconds(self, measured: float, mflops: float) -> float:
        """What a part takes here."""
        return measured if self.speed is None else max(measured, mflops / self.speed)


@dataclass(frozen=True)
class Cut:
    """One cut with what was measured for it on one batch.

    Attributes:
        name: of the last part on the first device; "input" where it has none, "output" where it
            has all.
        parts: c.
        first: seconds of the first c parts on the first device, and of packing what is sent.
        second: seconds of the others on the second, and of unpacking.
        sent: bytes there.
        returned: bytes back.
    """

    name: str
    parts: int
    first: float
    second: float
    sent: int
    returned: int


@dataclass(frozen=True)
class Pipeline:
    """What a cut gives.

    Attributes:
        cut: name of it.
        latency: seconds of one batch.
        throughput: inputs per second of many batches in a row.
    """

    cut: str
    latency: float
    throughput: float


def parts_of(network: Trunk) -> tuple[tuple[str, ...], list[Callable[[Any], Any]]]:
    """Names of the P + 1 cuts, and the P parts: begin, each block, finish."""
    blocks = [_block(network, at) for at in range(len(network.names))]
    return ("input", "begin", *network.names, "output"), [network.begin, *blocks, network.finish]


def _block(network: Trunk, at: int) -> Callable[[Any], Any]:
    return lambda state: network.block(at, state)


def cut_number(network: Trunk, cut: str | int) -> int:
    """How many parts a cut leaves on the first device.

    Raises:
        InputError: there is no such cut.
    """
    names, _ = parts_of(network)
    if isinstance(cut, str) and cut in names:
        return names.index(cut)
    if isinstance(cut, int) and not isinstance(cut, bool) and 0 <= cut < len(names):
        return cut
    raise InputError(f"there is no cut {cut!r}: the cuts are {', '.join(names)}")


class Half:
    """Some parts of a network on one device.

    Args:
        parts: run in order.
        device: a slower one waits until its time is over.
        mflops: of the parts on one batch, read if the device has a speed.
    """

    def __init__(
        self, parts: Sequence[Callable[[Any], Any]], device: Device, mflops: float = 0.0
    ) -> None:
        self.parts, self.device, self.mflops = parts, device, mflops

    def __call__(self, state: Any) -> Any:
        """The state after the last of them."""
        start = time.perf_counter()
        for part in self.parts:
            state = part(state)
        if self.device.speed is not None:
            wait_until(start + self.mflops / self.device.speed)
        return state


@torch.no_grad()
def part_mflops(network: Trunk, x: Any) -> list[float]:
    """MFLOPs of each of the P parts on one batch."""
    _, parts = parts_of(network)
    found, state = [], x
    with evaluating(_module(network)):
        for part in parts:
            found.append(float(count_flops(part, state)))
            state = part(state)
    return found


@torch.no_grad()
def profile(
    network: Trunk,
    x: Any,
    *,
    first: Device | None = None,
    second: Device | None = None,
    repeats: int = REPEATS,
) -> list[Cut]:
    """All P + 1 cuts of a network, measured part by part on one batch.

    Every part runs `repeats` times and its median counts; no cut is run as such.

    Args:
        network: in evaluation mode meanwhile.
        x: a batch, as for `begin`.
        first: the device of the first parts; None: this machine.
        second: that of the others.
        repeats: at least 1.
    """
    names, parts = parts_of(network)
    devices = (first or Device(), second or Device())
    paced = any(device.speed is not None for device in devices)
    mflops = part_mflops(network, x) if paced else [0.0] * len(parts)
    with evaluating(_module(network)):
        states, seconds = _walk(parts, x, repeats)
    packing = [_packing(state, repeats) for state in states]
    sides = [
        [device.seconds(t, m) for t, m in zip(seconds, mflops, strict=True)] for device in devices
    ]
    found = []
    for c, name in enumerate(names):
        there, back = packing[c], packing[-1]
        crosses = c < len(parts)
        found.append(
            Cut(
                name,
                c,
                sum(sides[0][:c]) + (there.pack + back.unpack if crosses else 0.0),
                sum(sides[1][c:]) + (there.unpack + back.pack if crosses else 0.0),
                there.bytes if crosses else 0,
                back.bytes if crosses else 0,
            )
        )
    return found


def predict(cut: Cut, link: Link, inputs: int) -> Pipeline:
    """What a cut should give over a link.

    Args:
        cut: of `profile`.
        link: the line between the devices.
        inputs: of the batch that was profiled.
    """
    if not cut.sent:  # everything on the first device: nothing crosses
        return Pipeline(cut.name, cut.first, inputs / cut.first)
    there, back = cut.sent / link.bandwidth, cut.returned / link.bandwidth
    latency = cut.first + there + link.round_trip + cut.second + back
    return Pipeline(cut.name, latency, inputs / max(cut.first, there, cut.second, back))


def front(pipelines: Sequence[Pipeline], name: str = "splits") -> Frontier:
    """The cuts that no other equals or beats in latency and throughput, and beats in one.

    Args:
        pipelines: predicted or measured, each the mean or median of its runs.
        name: of the frontier.

    Returns:
        A frontier of throughput (inputs per second, as quality) against latency (seconds, as
        cost), by ascending latency; of equal cuts the first stays.
    """
    points = tuple(Point(p.cut, p.throughput, p.latency) for p in pipelines)
    return Frontier(name, points, "s").pareto()


def joined(first: Sequence[Cut], second: Sequence[Cut]) -> list[Cut]:
    """Profiles of one network that two machines made, each of itself: the first's and the second's.

    Raises:
        InputError: profiles of different networks or batches.
    """
    about = [[(cut.name, cut.sent, cut.returned) for cut in cuts] for cuts in (first, second)]
    if about[0] != about[1]:
        raise InputError("profiles that are joined are of one network and one batch, got two")
    return [replace(a, second=b.second) for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class _Packing:
    pack: float
    unpack: float
    bytes: int


def _packing(state: Any, repeats: int) -> _Packing:
    times: list[tuple[float, float]] = []
    pieces = pack("state", state)
    for _ in range(repeats):
        start = time.perf_counter()
        pieces = pack("state", state)
        packed = time.perf_counter()
        body = bytearray().join(pieces)[8:]
        begin = time.perf_counter()
        unpack(body)
        times.append((packed - start, time.perf_counter() - begin))
    return _Packing(median(t for t, _ in times), median(t for _, t in times), size(pieces))


def _walk(
    parts: Sequence[Callable[[Any], Any]], x: Any, repeats: int
) -> tuple[list[Any], list[float]]:
    """The states between parts, and each part's median seconds after one run to warm up."""
    if repeats < 1:
        raise InputError(f"a part is measured at least once, got repeats={repeats}")
    times: list[list[float]] = [[] for _ in parts]
    states: list[Any] = []
    for repeat in range(repeats + 1):
        states = [x]
        for at, part in enumerate(parts):
            start = time.perf_counter()
            states.append(part(states[-1]))
            if repeat:
                times[at].append(time.perf_counter() - start)
    return states, [median(found) for found in times]


def _module(network: Trunk) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise InputError(
            f"a network to split is a Trunk and a module, got {type(network).__name__}"
        )
    return network
