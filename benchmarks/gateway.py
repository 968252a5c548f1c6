"""What the gateway adds to a request: CPU, latency and throughput against the stub upstream itself.

    python benchmarks/gateway.py [--requests 1000] [--tokens 40] [--delay 0.0]

Stub, gateway and load generator are processes of their own on the loopback. CPU is that of the
gateway's process over the requests it served; latencies are paired with those of the stub alone.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pointsman.serve.wire import Pool, WireError

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "serve"
PROMPT = "Explain to a careful reader why the sum of two odd numbers is even. " * 6
STUB, GATEWAY = 9311, 9312


def request(model: str, stream: bool) -> bytes:
    """One request as bytes."""
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(port: int, data: bytes, requests: int, at_once: int) -> tuple[list[float], float]:
    """Latencies to the last byte, and requests per second."""
    pool, latencies, left = Pool("127.0.0.1", port, False), [], requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            start = time.perf_counter()
            reply = await pool.exchange(data, connect=5, first=60, idle=60, total=120)
            body = await reply.read(10**8)
            assert reply.status == 200, body
            latencies.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    took = time.perf_counter() - start
    pool.close()
    return latencies, requests / took


def cpu(process: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: int) -> float:
    """MiB of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20


@contextmanager
def running(*command: str, port: int) -> Iterator[int]:
    """A server process, ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        for _ in range(600):
            try:
                asyncio.run(_ask(port))
                break
            except WireError:
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


async def _ask(port: int) -> None:
    reply = await Pool("127.0.0.1", port, False).exchange(
        b"GET /counts HTTP/1.1\r\nhost: localhost\r\n\r\n", connect=1, first=5, idle=5, total=5
    )
    reply.close()


def measure(name: str, process: int | None, port: int, data: bytes, n: int, at_once: int) -> Any:
    """Warm up, then measure; a line of figures."""
    asyncio.run(load(port, data, max(20, 2 * at_once), at_once))
    before = cpu(process) if process else 0.0
    latencies, rate = asyncio.run(load(port, data, n, at_once))
    p50, p99 = np.quantile(latencies, [0.5, 0.99]) * 1e3
    spent = (cpu(process) - before) / n * 1e3 if process else float("nan")
    print(
        f"{name:<42} {at_once:>3} at once  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  "
        f"{rate:7.0f} /s  CPU {spent:5.2f} ms",
        flush=True,
    )
    return p50, p99


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    from policies import save_policy

    folder = Path(tempfile.mkdtemp())
    policy = save_policy(folder / "policy.safetensors")
    tables = "".join(
        f'[models."{name}"]\nbase_url = "http://127.0.0.1:{STUB}/v1"\nprice_input = 1.0\n'
        f"price_output = 2.0\n"
        for name in policy.models
    )
    (folder / "models.toml").write_text(tables)
    stub = [sys.executable, str(TESTS / "stub_upstream.py"), "--port", str(STUB)]
    stub += ["--tokens", str(given.tokens), "--delay", str(given.delay)]
    code = "from pointsman.cli.serve import command; command()"
    try:
        with running(*stub, port=STUB):
            for stream in (False, True):
                kind = "stream" if stream else "whole"
                direct = request(policy.models[0], stream)
                for at_once in (1, 32):
                    measure(f"stub alone, {kind}", None, STUB, direct, given.requests, at_once)
            for store in ("memory:", f"sqlite:///{folder}/ledger.db"):
                serve = [sys.executable, "-c", code, str(folder), "--store", store]
                serve += ["--models", str(folder / "models.toml"), "--port", str(GATEWAY)]
                with running(*serve, port=GATEWAY) as process:
                    for stream in (False, True):
                        data = request("pointsman:best", stream)
                        for at_once in (1, 32):
                            name = f"{store.partition(':')[0]}, {'stream' if stream else 'whole'}"
                            measure(name, process, GATEWAY, data, given.requests, at_once)
                    print(f"memory held: {resident(process):.0f} MiB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
