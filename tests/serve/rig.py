"""A gateway in front of a stub upstream, both on loopback ports and in one event loop."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import uvicorn
from stub_upstream import Stub

from pointsman.errors import InputError
from pointsman.pool.policy import PoolPolicy
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.strategy import Step
from pointsman.serve.app import make_app
from pointsman.serve.config import Config, config_from
from pointsman.serve.gateway import Gateway, Generation
from pointsman.serve.logs import JsonLog
from pointsman.serve.observing import Observer
from pointsman.serve.protocol import LimitedProtocol, limits
from pointsman.serve.store import open_store


@dataclass(frozen=True)
class FakePoint:
    name: str
    quality: float
    cost: float
    model: int


@dataclass
class FakeDecision:
    """Asks `first`; where it is not final goes on to the last model unless the signal is high."""

    step: Step
    prediction: Prediction
    signal: str | None
    probabilities: Mapping[str, float]
    probability: float = 1.0
    seen: list[float | None] = field(default_factory=list)
    strategy: str = "fake"

    @property
    def outright(self) -> Mapping[str, float]:
        return {m: p * self.step.final for m, p in self.probabilities.items()}

    def replaced(self, model: str, signal: float | None) -> Step:
        self.seen.append(signal)
        first, last = self.step.model, self.prediction.quality.shape[1] - 1
        if signal is not None and signal > 0.5:
            return Step(first, False, True, 0.7, 0.0, "sure enough")
        return Step(last, True, True, 0.9, 0.01, "not sure")


class FakePolicy:
    """Points "cheap" (the first model) to "best" (the last), "certified" in the middle."""

    encoder: Any = None

    def __init__(
        self, models: Sequence[str] = ("small", "middle", "large"), signal: str | None = None
    ) -> None:
        self.models, self.signal = tuple(models), signal
        self.certificate: dict[str, Any] = {}
        self.expected: dict[str, Any] = {}
        self.strategies = {"fake": SimpleNamespace(signal=signal)}
        self.reference = self.models[-1]
        self.quality = np.linspace(0.5, 0.9, len(models))[None]
        self.cost = np.linspace(0.001, 0.01, len(models))[None]
        middle, last = len(models) // 2, len(models) - 1
        self.named = {"cheap": 0, "certified": middle, "best": last}
        self.named["reference"] = last
        self.asked: list[dict[str, Any]] = []
        self.last: FakeDecision | None = None

    def point(self, name: str) -> FakePoint:
        if name not in self.named:
            raise InputError(f"no point {name!r}")
        m = self.named[name]
        return FakePoint(name, float(self.quality[0, m]), float(self.cost[0, m]), m)

    def words(self) -> str:
        return "A fake."

    def at_cost(self, us_dollars: float) -> FakePoint:
        m = int((self.cost[0] <= us_dollars).sum()) - 1
        return FakePoint(f"cost={us_dollars:g}", float(self.quality[0, m]), us_dollars, max(m, 0))

    def decide(self, query: str, *, point: FakePoint, **more: Any) -> FakeDecision:
        self.asked.append({"query": query, "point": point.name, **more})
        m = point.model
        judged = self.signal is not None and m < len(self.models) - 1
        step = Step(m, True, not judged, float(self.quality[0, m]), float(self.cost[0, m]), "fake")
        prediction = Prediction(self.quality, self.cost)
        shares = {name: float(i == m) for i, name in enumerate(self.models)}
        self.last = FakeDecision(step, prediction, self.signal, shares)
        return self.last


@dataclass
class Rig:
    """What a test works with."""

    url: str
    stub: Stub
    stub_url: str
    policy: FakePolicy
    gateway: Gateway

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
    ) -> "Answered":
        """One exchange on a connection of its own."""
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        lines = {"host": "localhost", "connection": "close", "content-length": str(len(data))}
        if body is not None:
            lines["content-type"] = "application/json"
        head = "".join(f"{k}: {v}\r\n" for k, v in {**lines, **headers}.items())
        return await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data)

    async def raw(self, data: bytes, seconds: float = 20.0) -> "Answered":
        """Bytes out, and all bytes that come back until the connection is closed."""
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(data)
                return answered(await reader.read())
            finally:
                writer.close()

    async def chat(
        self, content: Any = "hello there", headers: Mapping[str, str] = {}, **more: Any
    ) -> "Answered":
        """A request for a completion."""
        body = {"model": "pointsman", "messages": [{"role": "user", "content": content}], **more}
        return await self.call("POST", "/v1/chat/completions", body, headers)


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        """Data of the events of a stream."""
        lines = self.body.decode().split("\n")
        return [line[6:] for line in lines if line.startswith("data: ")]

    @property
    def text(self) -> str:
        """What a stream says."""
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        deltas = [c["choices"][0]["delta"] for c in chunks if c.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)


def answered(data: bytes) -> Answered:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return Answered(int(first.split()[1]) if first else 0, headers, body)


def unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)


@asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """An application on a free port of the loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off", **options)
    server = uvicorn.Server(config)
    server.capture_signals = NoSignals  # type: ignore[method-assign]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
    finally:
        server.should_exit = True
        server.force_exit = True
        await running


class NoSignals:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def tables(stub_url: str, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Of a models.toml with every model at the stub."""
    prices = {"price_input": 1.0, "price_output": 2.0, "retries": 1, "first_seconds": 5.0}
    prices |= more.pop("model", {})
    each = {name: {"base_url": f"{stub_url}/v1", **prices} for name in names}
    for name, values in more.pop("models", {}).items():
        each[name] = {**each.get(name, {"base_url": f"{stub_url}/v1"}), **values}
    more.setdefault("server", {}).setdefault("store", "memory:")
    return {"models": each, **more}


@asynccontextmanager
async def rig(
    policy: FakePolicy | None = None, folder: Path = Path(), **more: Any
) -> AsyncIterator[Rig]:
    """A gateway and a stub; `more` are tables of models.toml, `model` values of every model."""
    policy = policy or FakePolicy()
    if "policy_table" in more:
        more["policy"] = more.pop("policy_table")
    stub = Stub()
    async with serving(stub) as (stub_url, _):
        config: Config = config_from(tables(stub_url, policy.models, **more), folder)
        store = await open_store(config.server.store)
        observer = Observer(JsonLog(io.StringIO()))
        generation = Generation(cast(PoolPolicy, policy), config)
        gateway = Gateway(generation, store, observer.observe, observer.feedback)
        LimitedProtocol.limits = limits(config.server)
        try:
            async with serving(make_app(gateway, observer), http=LimitedProtocol) as (url, _):
                yield Rig(url, stub, stub_url, policy, gateway)
        finally:
            await store.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test that awaits."""
    asyncio.run(asyncio.wait_for(scenario(), 60))
