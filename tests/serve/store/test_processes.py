"""Several processes on one store, and processes that are killed in the middle."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointsman.serve.store import ANONYMOUS, Key, accounts, open_store

Run = Callable[[Any], Any]
WORKING = Path(__file__).with_name("working.py")
HELD = 0.001  # US$, as in working.py


class Working:
    """A process that reserves and settles, see working.py, and what it has said so far."""

    def __init__(self, url: str, key: int, name: str, folder: Path, seconds: float = 0.0) -> None:
        self.said = folder / name
        words = [url, str(key), name, str(sum(map(ord, name))), str(seconds)]
        with self.said.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, str(WORKING), *words], stdout=file)

    def until_settled(self) -> None:
        """Wait until it has settled something."""
        while "\nsettled" not in self.said.read_text():
            assert self.process.poll() is None
            time.sleep(0.01)

    def heard(self) -> dict[str, dict[str, str]]:
        """What it said before it ended: verb to request to the rest."""
        self.process.wait(60)
        said: dict[str, dict[str, str]] = {
            verb: {} for verb in ("open", "reserved", "settled", "released", "refused")
        }
        for line in self.said.read_text().splitlines():
            verb, _, rest = line.partition(" ")
            request, _, amount = rest.partition(" ")
            said[verb][request] = amount
        return said


async def add_key(url: str, **limits: Any) -> int:
    store = await open_store(url)
    key = await store.add_key(Key(0, "ada", **limits), "hash")
    await store.close()
    return key.id


async def settled_in(url: str, requests: dict[str, str]) -> None:
    """Every one of these is in the ledger at its cost: settling it again is no news."""
    store = await open_store(url)
    try:
        for request, cost in requests.items():
            assert await store.settle(request, int(cost) / 1e9) is False
    finally:
        await store.close()


async def totals(url: str, key: int) -> tuple[float, float, list[Any], list[tuple[int, str]]]:
    store = await open_store(url)
    try:
        settled, reserved = await store.spent(key)
        return settled, reserved, await store.reservations(), await store.check()
    finally:
        await store.close()


def test_processes_on_one_store_never_spend_more_than_the_budget(
    run: Run, shared: str, tmp_path: Path
) -> None:
    key = run(add_key(shared, budget=0.02, period="total"))
    working = [Working(shared, key, f"p{i}", tmp_path, seconds=2.0) for i in range(3)]
    said = [one.heard() for one in working]
    assert all(one.process.returncode == 0 for one in working)
    costs = sum(int(cost) for one in said for cost in one["settled"].values())
    settled, reserved, left, wrong = run(totals(shared, key))
    assert wrong == []
    assert (settled, reserved, left) == (costs / 1e9, 0.0, [])
    assert 0.02 - HELD < settled <= 0.02
    assert sum(len(one["refused"]) for one in said) > 0


@pytest.mark.parametrize("seed", range(2))
def test_no_settled_cost_is_lost_when_processes_are_killed(
    run: Run, shared: str, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    key = run(add_key(shared))
    survivor = Working(shared, key, "survivor", tmp_path, seconds=3.0)
    victims = [Working(shared, key, f"v{i}", tmp_path) for i in range(2)]
    for victim in victims:
        victim.until_settled()
        time.sleep(rng.random() * 0.3)
        victim.process.kill()
    said = [victim.heard() for victim in victims]
    rest = survivor.heard()
    assert survivor.process.returncode == 0
    for one in (*said, rest):
        run(settled_in(shared, one["settled"]))
    settled, reserved, left, wrong = run(totals(shared, key))
    assert wrong == []
    acknowledged = sum(int(c) for one in (*said, rest) for c in one["settled"].values())
    # A cost may have been written just before the process was killed, and never been heard of.
    assert acknowledged / 1e9 <= settled <= acknowledged / 1e9 + 16 * HELD
    open_now = {one.request for one in left}
    assert reserved == pytest.approx(len(open_now) * HELD)
    for one in said:
        for request in one["reserved"]:
            closed = request in one["settled"] or request in one["released"]
            assert not (closed and request in open_now)
    assert all(one.in_doubt for one in left)
    assert all(one.request.startswith("v") for one in left)


def test_what_a_killed_process_had_reserved_stays_counted_until_it_is_closed(
    run: Run, shared: str
) -> None:
    key = run(add_key(shared, budget=0.008, period="total"))
    code = (
        "import asyncio, sys; from pointsman.serve.store import open_store\n"
        "async def main():\n"
        f"    store = await open_store({shared!r})\n"
        f"    for i in range(8): assert await store.reserve({key}, 0.001, f'r{{i}}')\n"
        "    print('held', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"

    async def before() -> None:
        store = await open_store(shared)
        assert [one.in_doubt for one in await store.reservations()] == [False] * 8
        await store.close()

    run(before())
    process.kill()
    process.wait()
    process.stdout.close()

    async def after() -> None:
        store = await open_store(shared)
        assert not await store.reserve(key, 0.001, "new")
        left = await store.reservations()
        assert [one.request for one in left] == [f"r{i}" for i in range(8)]
        assert all(one.in_doubt for one in left)
        assert left[0].process.endswith(f":{process.pid}")
        assert await store.settle("r0", 0.0004)
        assert await store.release("r1")
        assert await store.reserve(key, 0.0016, "new")
        assert not await store.reserve(key, 0.0001, "more")
        assert await store.check() == []
        await store.close()

    run(after())


def test_a_process_that_is_silent_for_long_is_dead(run: Run, shared: str) -> None:
    now = time.time()

    async def test() -> None:
        async with asyncio.timeout(30):
            ours = await open_store(shared, clock=lambda: now)
            await ours.reserve(ANONYMOUS, 0.1, "a")
            later = await open_store(shared, clock=lambda: now + 29)
            assert [one.in_doubt for one in await later.reservations()] == [False]
            await later.close()
            much = await open_store(shared, clock=lambda: now + 31)
            assert [one.in_doubt for one in await much.reservations()] == [True]
            await much.close()
            await ours.close()
            again = await open_store(shared, clock=lambda: now + 90000)
            assert ours.process.id in [one.id for one in await again._write(accounts.processes)]
            await again.release("a")
            await again.close()
            last = await open_store(shared, clock=lambda: now + 90000)
            assert ours.process.id not in [one.id for one in await last._write(accounts.processes)]
            await last.close()

    run(test())


def test_a_revoked_key_cannot_reserve_in_another_process(run: Run, shared: str) -> None:
    async def test() -> None:
        one, other = await open_store(shared), await open_store(shared)
        key = await one.add_key(Key(0, "ada"), "hash")
        assert await other.key("hash") == key
        await one.revoke_key("ada")
        assert await one.key("hash") is None
        assert not await other.reserve(key.id, 0.0, "a")  # though its cache may know it still
        other._hashes.clear()  # as the cache does by itself after `FRESH` seconds
        assert await other.key("hash") is None
        await one.close()
        await other.close()

    run(test())


def test_a_key_is_forgotten_after_a_while(
    run: Run, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 1000.0
    monkeypatch.setattr("pointsman.serve.store.store.time.monotonic", lambda: moment)

    async def test() -> None:
        nonlocal moment
        one, other = await open_store(shared), await open_store(shared)
        assert await other.key("hash") is None
        await one.add_key(Key(0, "ada"), "hash")
        assert await other.key("hash") is None  # it was looked for a moment ago
        moment += 2.1
        assert await other.key("hash") is not None
        await one.revoke_key("ada")
        assert await other.key("hash") is not None
        moment += 2.1
        assert await other.key("hash") is None
        await one.close()
        await other.close()

    run(test())


def test_a_rate_is_shared_by_processes(run: Run, shared: str) -> None:
    now = time.time()

    async def test() -> None:
        stores = [await open_store(shared, clock=lambda: now) for _ in range(3)]
        key = await stores[0].add_key(Key(0, "ada", rate_per_minute=20), "hash")
        answers = await asyncio.gather(*(stores[i % 3].allow(key.id) for i in range(60)))
        assert sum(ok for ok, _ in answers) == 20
        assert all(0 < wait <= 3.0 + 1e-6 for ok, wait in answers if not ok)
        for store in stores:
            await store.close()

    run(test())


def test_two_processes_that_make_a_store_at_once_make_one(run: Run, shared: str) -> None:
    async def test() -> None:
        stores = await asyncio.gather(*(open_store(shared) for _ in range(6)))
        await asyncio.gather(*(s.reserve(ANONYMOUS, 0.1, f"r{i}") for i, s in enumerate(stores)))
        assert (await stores[0].spent(ANONYMOUS))[1] == pytest.approx(0.6)
        assert len(await stores[0].processes()) == 6
        for store in stores:
            await store.close()

    run(test())
