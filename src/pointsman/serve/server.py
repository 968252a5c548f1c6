"""Processes and sockets: one server process, or several that share a port."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn

from pointsman.errors import InputError
from pointsman.serve.app import make_app
from pointsman.serve.gateway import Gateway
from pointsman.serve.logs import JsonLog
from pointsman.serve.observing import Observer
from pointsman.serve.protocol import LimitedProtocol, limits
from pointsman.serve.reload import Source, watch
from pointsman.serve.store import open_store

log = logging.getLogger("pointsman.serve")

BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(kind, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be listened at: {error.strerror}") from None
    return listener


def serve(source: Source, listener: socket.socket, workers: int = 1) -> int:
    """Serve until told to stop; the exit code.

    SIGTERM or SIGINT: no new connections, answers under way are finished. SIGHUP: read policy and
    configuration anew.

    Args:
        source: of policy and configuration.
        listener: see `bind`.
        workers: processes that share it.
    """
    if workers == 1:
        return _run(source, listener)
    return _supervise(source, listener, workers)


def _run(source: Source, listener: socket.socket) -> int:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _ignore)  # uvicorn raises the signal again once it is done with it
    factory = uvicorn.Config("").get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(source, listener))


async def _serve(source: Source, listener: socket.socket) -> int:
    generation = source.generation()
    server = generation.config.server
    store = await open_store(server.store)
    lines = JsonLog(text=server.log_text)
    observer = Observer(lines)
    gateway = Gateway(generation, store, observer.observe, observer.feedback)
    _log_to(lines)
    LimitedProtocol.limits = limits(server)
    config = uvicorn.Config(
        make_app(gateway, observer),
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(server.shutdown_seconds)),
    )
    await gateway.sync()
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    beside = [
        asyncio.create_task(watch(gateway, source, asked)),
        asyncio.create_task(observer.run(gateway)),
        asyncio.create_task(gateway.run()),
    ]
    try:
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await store.close()
    return 0


def _log_to(lines: JsonLog) -> None:
    """Send what is logged by us and by uvicorn through one log."""
    root = logging.getLogger()
    root.handlers[:] = [lines.handler()]
    root.setLevel(logging.INFO)


def _supervise(source: Source, listener: socket.socket, workers: int) -> int:
    """Keep so many processes running; signals go on to them."""
    stopping = False
    running: dict[int, float] = {}

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = stopping or number != signal.SIGHUP
        for process in running:
            os.kill(process, number)

    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, pass_on)
    code = 0
    while running or not stopping:
        while len(running) < workers and not stopping:
            running[_fork(source, listener)] = time.monotonic()
        ended, status = os.wait()
        began = running.pop(ended)
        if stopping:
            continue
        if time.monotonic() - began < 1.0:  # it does not come up: trying on would not help
            code, stopping = os.waitstatus_to_exitcode(status) or 1, True
            for process in running:
                os.kill(process, signal.SIGTERM)
        else:
            log.error("process %d ended, another is started", ended)
    return code


def _fork(source: Source, listener: socket.socket) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        code = _run(source, listener)
    except Exception as error:
        print(f"pointsman: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Nothing to do."""
