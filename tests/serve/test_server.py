"""The command as a process: starting, stopping, reloading, and being killed."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from policies import save_policy
from rig import Answered, Rig, run, serving, tables
from stub_upstream import Behaviour, Stub

from pointsman.errors import InputError
from pointsman.pool.policy import PoolPolicy
from pointsman.serve.reload import Source
from pointsman.serve.store import open_store

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a policy, and with another beside it."""
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder / "policy.safetensors")
    save_policy(folder / "other.safetensors", seed=10)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A folder of one's own with the same."""
    return Path(shutil.copytree(saved, tmp_path / "gateway"))


def toml(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Tables as TOML."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    lines = [f"[{'.'.join(json.dumps(p) for p in path)}]"] if path and plain else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    inner = [toml(v, (*path, k)) for k, v in values.items() if isinstance(v, dict)]
    return "\n".join([*lines, *inner])


def write_models(folder: Path, stub_url: str, **more: Any) -> None:
    """A models.toml for the policy in the folder."""
    names = PoolPolicy.load(folder / "policy.safetensors").models
    more.setdefault("server", {}).setdefault("store", "sqlite:///ledger.db")
    (folder / "models.toml").write_text(toml(tables(stub_url, names, **more)))


@asynccontextmanager
async def started(folder: Path, *words: str) -> AsyncIterator[tuple[Any, Rig]]:
    """The command on a free port; killed in the end if it still runs."""
    code = "from pointsman.cli.serve import command; command()"
    command = [sys.executable, "-c", code, str(folder), "--models"]
    process = await asyncio.create_subprocess_exec(
        *command,
        str(folder / "models.toml"),
        "--port",
        "0",
        *words,
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("ab"),
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + (folder / "log").read_text()
        r = Rig(found.group(), Stub(), "", None, None)  # type: ignore[arg-type]
        for _ in range(400):
            try:
                if (await r.call("GET", "/health")).status == 200:
                    break
            except OSError:
                pass
            await asyncio.sleep(0.02)
        yield process, r
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def logged(folder: Path, words: str) -> None:
    """Wait until the log says so."""
    for _ in range(1000):
        if words in (folder / "log").read_text():
            return
        await asyncio.sleep(0.01)
    raise AssertionError((folder / "log").read_text())


def test_a_real_policy_is_served_by_the_command_and_stops_when_told(folder: Path) -> None:
    async def scenario() -> None:
        stub = Stub()
        async with serving(stub) as (stub_url, _):
            write_models(folder, stub_url)
            async with started(folder) as (process, r):
                got = await r.chat("what is this")
                assert got.status == 200
                assert "x-pointsman-predicted-quality" in got.headers
                assert (await r.call("GET", "/metrics")).status == 200
                assert b"<html" in (await r.call("GET", "/status")).body
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
            store = await open_store(f"sqlite:///{folder}/ledger.db")
            row = await store.served(got.headers["x-pointsman-request-id"])
            assert row is not None
            assert row["propensities"][row["model"]] == row["propensity"] == 1.0
            await store.close()

    run(scenario)


def test_fifty_streams_survive_a_reload_and_then_a_shutdown(folder: Path) -> None:
    async def scenario() -> None:
        stub = Stub(Behaviour(tokens=60, delay=0.05))
        async with serving(stub) as (stub_url, _):
            write_models(folder, stub_url)
            async with started(folder) as (process, r):
                streams = [asyncio.create_task(r.chat(stream=True)) for _ in range(50)]
                while sum(stub.running.values()) < 50:
                    await asyncio.sleep(0.01)
                shutil.copy(folder / "other.safetensors", folder / "policy.safetensors")
                write_models(folder, stub_url, policy={"point": "cheap"})
                process.send_signal(signal.SIGHUP)
                await logged(folder, "reloaded")
                stub.default = Behaviour()
                assert (await r.chat()).headers["x-pointsman-point"] == "cheap"
                process.send_signal(signal.SIGTERM)
                got = await asyncio.gather(*streams)
                assert [each.events[-1] for each in got] == ["[DONE]"] * 50
                assert {len(each.text.split()) for each in got} == {60}
                assert {each.headers["x-pointsman-point"] for each in got} == {"certified"}
                assert await process.wait() == 0

    run(scenario)


def test_a_changed_file_is_noticed_and_a_broken_one_changes_nothing(folder: Path) -> None:
    async def scenario() -> None:
        async with serving(Stub()) as (stub_url, _):
            write_models(folder, stub_url)
            async with started(folder) as (_, r):
                (folder / "models.toml").write_text("nonsense")
                await logged(folder, "not reloaded")
                assert (await r.chat()).headers["x-pointsman-point"] == "certified"
                write_models(folder, stub_url, policy={"point": "best"})
                await logged(folder, '"reloaded')
                assert (await r.chat()).headers["x-pointsman-point"] == "best"

    run(scenario)


def test_the_ledger_is_exact_after_kill_9_under_load(folder: Path) -> None:
    async def scenario() -> None:
        stub = Stub(Behaviour(tokens=5, delay=0.002))
        async with serving(stub) as (stub_url, _):
            write_models(folder, stub_url)
            async with started(folder) as (process, r):
                done: list[Answered] = []

                async def client() -> None:
                    while True:
                        done.append(await r.chat("one two", stream=True))

                clients = [asyncio.create_task(client()) for _ in range(12)]
                while len(done) < 100:
                    await asyncio.sleep(0.01)
                process.kill()
                await process.wait()
                await asyncio.wait(clients, timeout=5)
                for each in clients:
                    each.cancel()
            whole = [each for each in done if each.events and each.events[-1] == "[DONE]"]
            store = await open_store(f"sqlite:///{folder}/ledger.db")
            each = round((2 * 1.0 + 5 * 2.0) * 1e-6, 9)
            for answer in whole:
                row = await store.served(answer.headers["x-pointsman-request-id"])
                assert row is not None
                assert row["cost"] == pytest.approx(each)
            assert await store.check() == []
            settled, _ = await store.spent(0)
            doubt = [one for one in await store.reservations() if one.in_doubt]
            settlements = round(settled / each)
            assert settled == pytest.approx(settlements * each, abs=1e-12)
            assert len(whole) <= settlements <= len(whole) + 12
            assert len(doubt) <= 12
            assert settlements + len(doubt) >= len(whole)
            await store.close()

    run(scenario)


def test_several_processes_share_port_and_ledger(folder: Path) -> None:
    async def scenario() -> None:
        async with serving(Stub()) as (stub_url, _):
            write_models(folder, stub_url)
            async with started(folder, "--workers", "2") as (process, r):
                got = await asyncio.gather(*(r.chat("one two") for _ in range(40)))
                assert {each.status for each in got} == {200}
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
            store = await open_store(f"sqlite:///{folder}/ledger.db")
            settled, reserved = await store.spent(0)
            assert (settled, reserved) == (pytest.approx(40 * 26e-6), 0.0)
            await store.close()

    run(scenario)


def test_beyond_loopback_keys_are_needed(folder: Path) -> None:
    write_models(folder, "http://127.0.0.1:1")
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(InputError, match="without keys anybody there could spend your money"):
            Source(folder, folder / "models.toml", host=host).config()
        assert Source(folder, folder / "models.toml", host=host, keys=True).config().server.keys
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not Source(folder, folder / "models.toml", host=host).config().server.keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no model"),
        ("x", "is no TOML file"),
        ("[other]\na=1", "tables are"),
        ("[models.a]\nprice_input=1", "needs base_url"),
        ("[models.a]\nbase_url=3", "must be a text"),
        ("[models.a]\nbase_url='ftp://x'", "must be an http or https address"),
        ("[models.a]\nbase_url='http://u:p@x'", "host and path alone"),
        ("[models.a]\nbase_url='http://x'\napi_key='sk-1'", "never the key itself"),
        ("[models.a]\nbase_url='http://x'\napi_key='env:POINTSMAN_NONE'", "holds no key"),
        ("[models.a]\nbase_url='http://x'\nprice_input=-1", "finite and not negative"),
        ("[models.a]\nbase_url='http://x'\nprize_input=1", "'prize_input' is not known"),
        ("[models.pointsman]\nbase_url='http://x'", "is kept for points"),
        ("[models.a]\nbase_url='http://x'\n[policy]\npace_period='year'", "must be one of"),
        (
            "[models.a]\nbase_url='http://x'\n[signals.s]\nkind='verifier'\nmodel='b'",
            "must be one of a",
        ),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        Source(tmp_path, path).config()
    assert "\n" not in str(caught.value)


def test_a_model_of_the_policy_that_is_not_configured_is_named(folder: Path) -> None:
    (folder / "models.toml").write_text("[models.a]\nbase_url='http://x'")
    with pytest.raises(InputError, match="models.toml has no"):
        Source(folder, folder / "models.toml").generation()
