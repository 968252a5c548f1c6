"""The second device: a process that answers states with what its half makes of them.

On two machines, run `serve(network, host, port)` on the second and `Split(..., address=...)` on the
first, with the same network built on both. On one machine `partner` starts such a process.
"""

import hashlib
import math
import multiprocessing
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pointsman.depth.splitting.cuts import Device, Half, part_mflops, parts_of
from pointsman.depth.splitting.link import Connection, Link, Message
from pointsman.depth.splitting.wire import PartnerError, moved, pack
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError, reason
from pointsman.modules import evaluating

Address = tuple[str, int]


def fingerprint(network: Trunk) -> str:
    """Of the names of its parts and of its weights: both sides must have one network."""
    digest = hashlib.sha256(repr(network.names).encode())
    if isinstance(network, nn.Module):
        for name, value in sorted(network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def serve(
    network: Trunk,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    connections: int | None = None,
    ready: Callable[[Address], None] = print,
) -> None:
    """Be the second device until told to stop, for one first device after the other.

    Anyone who reaches the port can have the network run: listen where only the first device can.

    Args:
        network: the whole of it, the same as on the first device.
        host: to listen on.
        port: 0: one that is free.
        connections: how many first devices to serve; None: without end.
        ready: told the address when listening.
    """
    mark = fingerprint(network)
    with socket.create_server((host, port)) as listener:
        ready(listener.getsockname()[:2])
        while connections is None or connections > 0:
            line, _ = listener.accept()
            _serve_one(network, mark, line)
            connections = None if connections is None else connections - 1


def _serve_one(network: Trunk, mark: str, line: socket.socket) -> None:
    side = _Side(network, mark, Connection(line, Link(), patience=3600.0))
    try:
        while True:
            try:
                side.answer(side.connection.receive())
            except Exception as error:
                if side.connection.broken is not None:
                    return  # wait for the next first device
                why = f"{type(error).__name__}: {reason(error)}"  # told to the other side
                side.connection.send(pack("failed", None, why=why))
    finally:
        side.connection.close()


class _Side:
    """What the second device knows of one first device."""

    def __init__(self, network: Trunk, mark: str, connection: Connection) -> None:
        self.network, self.mark, self.connection = network, mark, connection
        self.device, self.mflops = Device(), [0.0]

    def answer(self, message: Message) -> None:
        about = message.about
        if message.kind == "hello":
            if about["fingerprint"] != self.mark:
                raise InputError(
                    "the two devices have different networks or weights: load the same ones"
                )
            bandwidth, round_trip = about["link"]
            self.connection.link = Link(math.inf if bandwidth is None else bandwidth, round_trip)
            self.device, self.mflops = Device(about["speed"]), about["mflops"]
        state, number = None, -1  # also of an echo, which asks about the line
        if message.kind == "run":
            state, number = self._run(message.state, int(about["parts"])), about["number"]
        self.connection.send(pack("answer", state, number=number))

    @torch.no_grad()
    def _run(self, state: Any, c: int) -> Any:
        half = Half(parts_of(self.network)[1][c:], self.device, sum(self.mflops[c:]))
        assert isinstance(self.network, nn.Module)
        weight = next(self.network.parameters(), torch.empty(0))
        with evaluating(self.network):
            return half(moved(state, weight.device))


@contextmanager
def partner(network: Trunk) -> Iterator[Address]:
    """A second process on this machine that serves a network; ended on leaving.

    It is forked where the system can, so it has the network as it is now, and runs on one thread.

    Args:
        network: a Trunk.

    Raises:
        PartnerError: the process did not come up.
    """
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(network, theirs), daemon=True)
    with warnings.catch_warnings():
        # Python warns of forking beside threads; the child starts none of torch's
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise PartnerError("the second process did not come up in 60 s")
        yield ours.recv()
    except EOFError as error:
        raise PartnerError("the second process ended before it listened") from error
    finally:
        process.kill()
        process.join()
        ours.close()


def _child(network: Trunk, pipe: Any) -> None:
    torch.set_num_threads(1)
    serve(network, ready=pipe.send)


def announce(network: Trunk, x: Any, link: Link, device: Device) -> list[bytes | memoryview]:
    """The first message to a second device: which network, which line, how fast to be."""
    mflops = part_mflops(network, x) if device.speed is not None else [0.0]
    bandwidth = None if link.bandwidth == math.inf else link.bandwidth
    return pack(
        "hello",
        None,
        fingerprint=fingerprint(network),
        link=[bandwidth, link.round_trip],
        speed=device.speed,
        mflops=mflops,
    )
