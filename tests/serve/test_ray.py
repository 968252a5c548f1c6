"""Two replicas on a local Ray Serve cluster, on one store."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from policies import save_policy
from rig import tables

from pointsman.errors import InputError
from pointsman.pool.policy import PoolPolicy
from pointsman.serve.keys import hash_key
from pointsman.serve.store import Key, open_store, read_served

NEEDED = 4 * 2**30  # bytes of memory for a small cluster


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy."""
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder / "policy.safetensors")
    return folder


@pytest.fixture
def files(saved: Path, tmp_path: Path) -> Path:
    """One's own, with the models.toml of upstreams that are not there."""
    folder = Path(shutil.copytree(saved, tmp_path / "gateway"))
    write(folder, tables("http://127.0.0.1:9", PoolPolicy.load(folder).models))
    return folder


def write(folder: Path, values: Any) -> None:
    lines = []
    for name, model in values["models"].items():
        lines += [f'[models."{name}"]', *(f"{k} = {json.dumps(v)}" for k, v in model.items())]
    lines += ["[server]", *(f"{k} = {json.dumps(v)}" for k, v in values["server"].items())]
    (folder / "models.toml").write_text("\n".join(lines))


def test_without_ray_the_way_to_get_it_is_told(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pointsman.serve.ray import application

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install 'ray\\[serve\\]'"):
        application(files, files / "models.toml")


def test_a_replica_opens_and_closes_what_it_needs_by_itself(files: Path) -> None:
    from pointsman.serve.ray import Replica
    from pointsman.serve.reload import Source

    url = f"sqlite:///{files}/s.db"

    async def test() -> None:
        replica = Replica(Source(files, files / "models.toml", store=url))
        told: asyncio.Queue[Any] = asyncio.Queue()
        said: asyncio.Queue[Any] = asyncio.Queue()
        living = asyncio.create_task(replica({"type": "lifespan"}, told.get, said.put))
        await told.put({"type": "lifespan.startup"})
        assert (await said.get())["type"] == "lifespan.startup.complete"
        sent: list[Any] = []
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/health",
            "raw_path": b"/health",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }

        async def send(message: Any) -> None:
            sent.append(message)

        await replica(scope, told.get, send)
        assert sent[0]["status"] == 200
        await told.put({"type": "lifespan.shutdown"})
        assert (await said.get())["type"] == "lifespan.shutdown.complete"
        await living
        store = await open_store(url)
        assert [one.id for one in await store.processes()] == [store.process.id]
        await store.close()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_replica_that_cannot_start_says_why(files: Path) -> None:
    from pointsman.serve.ray import Replica
    from pointsman.serve.reload import Source

    async def test() -> None:
        replica = Replica(Source(files, files / "models.toml", store="sqlite:////none/s.db"))
        told: asyncio.Queue[Any] = asyncio.Queue()
        said: asyncio.Queue[Any] = asyncio.Queue()
        await told.put({"type": "lifespan.startup"})
        await replica({"type": "lifespan"}, told.get, said.put)
        failed = await said.get()
        assert failed["type"] == "lifespan.startup.failed"
        assert "there is no folder /none" in failed["message"]

    asyncio.run(asyncio.wait_for(test(), 60))


@dataclass
class Cluster:
    """What a test works with."""

    url: str
    store: str
    secret: str
    key: int

    def get(self, path: str, accept: str = "application/json") -> Any:
        headers = {"authorization": f"Bearer {self.secret}", "accept": accept}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers), timeout=30
        ) as answer:
            return answer.read().decode()

    def chat(self, **more: Any) -> tuple[int, str]:
        body = {"model": "pointsman", "messages": [{"role": "user", "content": "hello"}], **more}
        headers = {
            "authorization": f"Bearer {self.secret}",
            "content-type": "application/json",
        }
        asked = urllib.request.Request(
            self.url + "/v1/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cluster(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two replicas in front of a stub upstream, with one key of a small budget."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else the tests beside this one go first
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray = pytest.importorskip("ray", reason="ray is not installed")
    serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    if memory() < NEEDED:
        pytest.skip(f"a Ray cluster needs {NEEDED >> 30} GB of free memory")
    from pointsman.serve.ray import application

    port, stub_port = free_port(), free_port()
    stub = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("stub_upstream.py"), "--port", str(stub_port)],
        stderr=subprocess.DEVNULL,
    )
    names = PoolPolicy.load(files).models
    server = {"keys": True, "store": f"sqlite:///{files}/s.db"}
    write(files, tables(f"http://127.0.0.1:{stub_port}", names, server=server))
    secret = "pm-test"

    async def add() -> int:
        store = await open_store(server["store"])
        key = await store.add_key(Key(0, "ada", budget=0.5, period="total"), hash_key(secret))
        await store.close()
        return key.id

    key = asyncio.run(add())
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        made = application(
            files, files / "models.toml", replicas=2, ray_actor_options={"num_cpus": 0.5}
        )
        serve.run(made, name="pointsman")
        yield Cluster(f"http://127.0.0.1:{port}", str(server["store"]), secret, key)
    finally:
        serve.shutdown()
        ray.shutdown()
        stub.kill()
        stub.wait()


def test_replicas_share_keys_budget_and_ledger(cluster: Cluster) -> None:
    with ThreadPoolExecutor(8) as many:
        answers = list(many.map(lambda _: cluster.chat(max_tokens=100), range(60)))
    assert {status for status, _ in answers} == {200}
    found = json.loads(cluster.get("/status"))
    assert len(found["processes"]) == 2
    text = cluster.get("/metrics")
    served = [line for line in text.splitlines() if line.startswith("pointsman_requests_total")]
    assert len({line.partition('process="')[2].partition('"')[0] for line in served}) >= 1
    status, streamed = cluster.chat(stream=True)
    assert status == 200
    assert "data: [DONE]" in streamed
    kill_one_replica(found)
    for _ in range(20):
        assert cluster.chat(max_tokens=100)[0] == 200
    wait_for_two(cluster)

    async def ledger() -> None:
        store = await open_store(cluster.store)
        settled, reserved = await store.spent(cluster.key)
        assert await store.check() == []
        assert reserved == 0
        (total,) = await store.totals()
        assert total.requests == 81
        logged = list(read_served(cluster.store))
        assert len(logged) == 81
        assert settled == pytest.approx(sum(row["cost"] for row in logged))
        await store.close()

    asyncio.run(ledger())
    costly = {"max_tokens": 60_000}
    with ThreadPoolExecutor(8) as many:
        refused = [status for status, _ in many.map(lambda _: cluster.chat(**costly), range(24))]
    assert 429 in refused


def kill_one_replica(found: Any) -> None:
    os.kill(int(found["processes"][0]["name"].rpartition(":")[2]), 9)


def wait_for_two(cluster: Cluster) -> None:
    for _ in range(120):
        if len(json.loads(cluster.get("/status"))["processes"]) == 2:
            return
        time.sleep(0.5)
    raise AssertionError("the killed replica was not replaced")


def test_what_could_cost_its_owner_money_is_refused(files: Path) -> None:
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    from pointsman.serve.ray import application

    with pytest.raises(InputError, match="without keys anybody"):
        application(files, files / "models.toml")
    with pytest.raises(InputError, match="2 replicas need a store that they share"):
        application(files, files / "models.toml", local=True)
    assert application(files, files / "models.toml", local=True, replicas=1)
