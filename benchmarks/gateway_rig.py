"""What the gateway's benchmarks share: processes that are started and watched, and a load.

The stub upstream, each gateway and the load are processes of their own on the loopback. Gateways
are held to one core; the stub and the load share another, where there is one.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pointsman.pool.policy import PoolPolicy
from pointsman.serve.keys import hash_key, new_key
from pointsman.serve.store import Key, open_store
from pointsman.serve.wire import Pool, WireError

TESTS = Path(__file__).resolve().parent.parent / "tests" / "serve"
PROMPT = "Explain to a careful reader why the sum of two odd numbers is even. " * 6
CORES = (0, min(1, (os.cpu_count() or 1) - 1))  # of the gateways; of the stub and the load
NICE = -12  # of all that is measured, with `first`
INPUT, OUTPUT = 1.0, 2.0  # US$ per million tokens

sys.path.insert(0, str(TESTS))


@dataclass
class Process:
    """A server that runs.

    Args:
        name: in words.
        port: that it listens on.
        handle: the process.
        headers: that a request needs.
        model: that requests ask for.
    """

    name: str
    port: int
    handle: subprocess.Popen[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    model: str = "small"

    def members(self) -> list[int]:
        """The process and those that it has started."""
        found, left = [], [self.handle.pid]
        while left:
            each = left.pop()
            found.append(each)
            for task in Path(f"/proc/{each}/task").iterdir():
                left += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu(self) -> float:
        """Seconds of processor that it has used, children included."""
        ticks = 0
        for each in self.members():
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self) -> list[float]:
        """MiB of memory held, of the process and of each child."""
        sizes = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in self.members()]
        return [size * os.sysconf("SC_PAGE_SIZE") / 2**20 for size in sizes]


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int,
    *,
    core: int | None = None,
    first: bool = False,
    path: str = "/counts",
    environment: Mapping[str, str] = {},
    log: Path | None = None,
) -> Iterator[Process]:
    """A server process that answers, ended in the end.

    Args:
        name: in words.
        command: that starts it.
        port: that it listens on.
        core: that it is held to, or None.
        first: whether it goes before other work on its core (needs root).
        path: that it answers once it is ready, with whatever status.
        environment: variables beside our own.
        log: file for what it says, or None.
    """
    if asyncio.run(_answers(port, path)):
        raise SystemExit(f"something listens on port {port} already: end it first")
    before = ["taskset", "-c", str(core)] if core is not None else []
    before += ["nice", "-n", str(NICE)] if first else []
    with (log or Path(os.devnull)).open("ab") as said:
        handle = subprocess.Popen(
            [*before, *command],
            stdout=said,
            stderr=said,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while not asyncio.run(_answers(port, path)):
            if handle.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield Process(name, port, handle)
    finally:
        if handle.poll() is None:
            handle.terminate()
            try:
                handle.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(handle.pid, signal.SIGKILL)
        handle.wait()


async def _answers(port: int, path: str) -> bool:
    try:
        await get(port, path)
    except WireError:
        return False
    return True


async def get(port: int, path: str) -> bytes:
    """The body of an answer."""
    data = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    pool = Pool("127.0.0.1", port, False)
    reply = await pool.exchange(data, connect=1, first=20, idle=20, total=20)
    body = await reply.read(10**7)
    pool.close()
    return body


def request(server: Process, stream: bool, content: str = PROMPT, **more: object) -> bytes:
    """One request for a completion, as bytes."""
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": server.model, "messages": messages, "stream": stream, **more})
    lines = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **server.headers,
    }
    head = "".join(f"{k}: {v}\r\n" for k, v in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n{body}".encode()


@dataclass(frozen=True)
class Got:
    """An answer, with seconds to its first and to its last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first: float
    last: float

    @property
    def whole(self) -> bool:
        """Whether it is an answer, and came to its end."""
        return self.status == 200 and (self.body[:1] == b"{" or b"data: [DONE]" in self.body)


async def exchange(pool: Pool, data: bytes) -> Got:
    """Send a request and read its answer."""
    start = time.perf_counter()
    reply = await pool.exchange(data, connect=5, first=60, idle=60, total=120)
    try:
        parts, first = [], 0.0
        while piece := await reply.piece():
            first = first or time.perf_counter() - start
            parts.append(piece)
    finally:
        reply.close()
    headers = {k.decode(): v.decode("latin-1") for k, v in reply.headers}
    return Got(reply.status, headers, b"".join(parts), first, time.perf_counter() - start)


async def load(
    server: Process, streams: Sequence[bool], requests: int, at_once: int
) -> tuple[list[Got], float]:
    """Answers to so many requests, `at_once` under way; and the seconds that all of it took.

    Args:
        server: that is asked.
        streams: whether an answer streams, in turns.
        requests: in all.
        at_once: requests under way.
    """
    pool, left, done = Pool("127.0.0.1", server.port, False), requests, []
    data = [request(server, stream) for stream in streams]

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            got = await exchange(pool, data[left % len(data)])
            if not got.whole:
                raise SystemExit(f"{server.name} answered {got.status} {got.body[:500]!r}")
            done.append(got)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    took = time.perf_counter() - start
    pool.close()
    return done, took


def stub(
    port: int, tokens: int, delay: float, *, first: bool = False
) -> AbstractContextManager[Process]:
    """Context of the stub upstream."""
    command = [sys.executable, str(TESTS / "stub_upstream.py"), "--port", str(port)]
    command += ["--tokens", str(tokens), "--delay", str(delay)]
    return running("stub", command, port, core=CORES[1], first=first)


def write_models(folder: Path, models: Sequence[str], stub_port: int, point: str) -> None:
    """models.toml with every model at the stub."""
    prices = f"price_input = {INPUT}\nprice_output = {OUTPUT}\nretries = 0\n"
    tables = [
        f'[models."{name}"]\nbase_url = "http://127.0.0.1:{stub_port}/v1"\n{prices}'
        for name in models
    ]
    text = "\n".join([*tables, f'[policy]\npoint = "{point}"\n'])
    waiting = folder / "models.toml.new"
    waiting.write_text(text)
    waiting.replace(folder / "models.toml")


def prepare(folder: Path, stub_port: int) -> tuple[PoolPolicy, str]:
    """A policy that routes by the text, models.toml, and a store with one key; the key."""
    from policies import save_policy

    policy = save_policy(folder / "policy.safetensors")
    write_models(folder, policy.models, stub_port, "certified")
    secret = new_key()

    async def add() -> None:
        store = await open_store(store_url(folder), create=True)
        wanted = Key(0, "load", budget=100_000.0, period="total", created=time.time())
        await store.add_key(wanted, hash_key(secret))
        await store.close()

    asyncio.run(add())
    return policy, secret


def store_url(folder: Path) -> str:
    """Of the ledger."""
    return f"sqlite:///{folder}/ledger.db"


@contextmanager
def gateway(
    folder: Path,
    secret: str,
    port: int,
    *,
    model: str = "pointsman",
    workers: int = 1,
    core: int | None = None,
    first: bool = False,
    log: Path | None = None,
) -> Iterator[Process]:
    """Our gateway, with keys and the ledger in SQLite."""
    code = "from pointsman.cli.serve import command; command()"
    command = [sys.executable, "-c", code, str(folder), "--keys", "--store", store_url(folder)]
    command += ["--models", str(folder / "models.toml"), "--port", str(port)]
    command += ["--workers", str(workers)]
    with running(
        "pointsman", command, port, core=core, first=first, path="/health", log=log
    ) as process:
        process.headers, process.model = {"authorization": f"Bearer {secret}"}, model
        yield process


@contextmanager
def litellm(
    program: str, folder: Path, models: Sequence[str], port: int, stub_port: int, first: bool
) -> Iterator[Process]:
    """LiteLLM's proxy, with a master key and no database.

    Args:
        program: a Python that has litellm[proxy], or the command `litellm`.
        folder: for its configuration.
        models: names.
        port: that it listens on.
        stub_port: of the upstream.
        first: see `running`.
    """
    binary = Path(program)
    if binary.name.startswith("python"):
        binary = binary.with_name("litellm")
    listed = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{stub_port}/v1",
                "api_key": "none",
            },
        }
        for name in models
    ]
    (folder / "litellm.yaml").write_text(json.dumps({"model_list": listed}))  # JSON is YAML
    secret = "sk-" + new_key()
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": secret,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    command = [str(binary), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1"]
    with running(
        "LiteLLM",
        command,
        port,
        core=CORES[0],
        first=first,
        path="/health/liveliness",
        environment=environment,
    ) as process:
        process.headers = {"authorization": f"Bearer {secret}"}
        process.model = models[0]
        yield process
