"""What must stay true of the gateway under load: its memory, its ledger, and streams that go on."""

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

from gateway_rig import (
    INPUT,
    OUTPUT,
    Got,
    Process,
    exchange,
    gateway,
    get,
    load,
    prepare,
    request,
    store_url,
    stub,
    write_models,
)

from pointsman.serve.store import open_store
from pointsman.serve.wire import Pool, WireError

EACH = 10_000  # requests between two looks at the memory
KILLS = 3
STREAMS = 50
RELOADS = 10


def watch_memory(
    folder: Path, requests: int, workers: int, tokens: int, ports: tuple[int, int]
) -> None:
    """Print the memory that the gateway holds, every 10,000 requests, whole and streams in turns.

    Args:
        folder: for policy and ledger.
        requests: in all.
        workers: processes of the gateway.
        tokens: in an answer.
        ports: of stub and gateway.
    """
    _, secret = prepare(folder, ports[0])
    start = time.monotonic()
    with (
        stub(ports[0], tokens, 0.0),
        gateway(folder, secret, ports[1], model="pointsman:0.5", workers=workers) as server,
    ):
        print(f"{workers} workers, {tokens} tokens an answer, 32 at once; MiB, supervisor first")
        for done in range(0, requests + 1, EACH):
            if done:
                asyncio.run(load(server, [False, True], EACH, 32))
            sizes = ", ".join(f"{size:.1f}" for size in server.resident())
            minutes = (time.monotonic() - start) / 60
            print(
                f"{done:>8,} requests  {sizes}  sum {sum(server.resident()):.1f}  "
                f"{minutes:.1f} min  load average {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        size = sum(each.stat().st_size for each in folder.glob("ledger.db*")) / 2**20
        print(f"the ledger's files: {size:.0f} MiB")


def check_ledger(folder: Path, ports: tuple[int, int]) -> None:
    """Kill the gateway under load, several times, and compare its ledger with all that is known.

    Every request asks the stub for another number of tokens, so that costs differ. What is known:
    how many calls the stub served, and which answers clients saw to their end, with their costs.
    """
    _, secret = prepare(folder, ports[0])
    finished: list[tuple[Got, int]] = []
    with stub(ports[0], 5, 0.001):
        for number in range(KILLS):
            with gateway(folder, secret, ports[1], workers=1 + number % 2) as server:
                asyncio.run(_load_and_kill(server, finished, 1500 * (number + 1)))
        counts = asyncio.run(_idle_counts(ports[0]))
    asyncio.run(_compare(folder, finished, counts))


async def _load_and_kill(server: Process, finished: list[tuple[Got, int]], enough: int) -> None:
    """Ask until so many answers were finished, then kill -9 all processes of the gateway."""
    pool, rng = Pool("127.0.0.1", server.port, False), random.Random(enough)

    async def client() -> None:
        while True:
            tokens = rng.randint(1, 9)
            data = request(server, rng.random() < 0.5, "one two", stub={"tokens": tokens})
            got = await exchange(pool, data)
            if got.whole:
                finished.append((got, round(1000 * (2 * INPUT + tokens * OUTPUT))))

    clients = [asyncio.create_task(client()) for _ in range(24)]
    while len(finished) < enough:
        await asyncio.sleep(0.001)
        if broken := [each for each in clients if each.done()]:
            raise SystemExit(f"a client failed: {broken[0].exception()}")
    os.killpg(server.handle.pid, signal.SIGKILL)
    server.handle.wait()
    ended = await asyncio.gather(*clients, return_exceptions=True)
    assert all(isinstance(each, WireError) for each in ended), ended


async def _idle_counts(port: int) -> dict[str, dict[str, int]]:
    """Counts of the stub, once it works at nothing."""
    while True:
        counts = json.loads(await get(port, "/counts"))
        if not sum(counts["running"].values()):
            return dict(counts)
        await asyncio.sleep(0.05)


async def _compare(
    folder: Path, finished: list[tuple[Got, int]], counts: dict[str, dict[str, int]]
) -> None:
    store = await open_store(store_url(folder))
    differences = await store.check()
    totals = [total for total in await store.totals() if total.key]
    doubt = [one for one in await store.reservations() if one.in_doubt]
    await store.close()
    with sqlite3.connect(folder / "ledger.db") as database:
        found = dict(database.execute("SELECT request, cost FROM ledger WHERE cost IS NOT NULL"))
        open_ = {row[0] for row in database.execute("SELECT request FROM ledger WHERE state = 0")}
        logged = dict(database.execute("SELECT id, cost FROM served"))
    served = sum(counts["served"].values())
    told = {got.headers["x-pointsman-request-id"]: cost for got, cost in finished}
    stated = [_stated(got) == cost for got, cost in finished]
    seen = sum(told.values())
    unseen = sum(found[each] for each in found.keys() - told.keys())
    settled = sum(round(total.settled * 1e9) for total in totals)
    print(f"killed {KILLS} times, with 1, 2 and 1 processes, 24 requests under way each time")
    print(f"calls served by the stub                        {served:>12,}")
    print(f"answers that clients saw to their end           {len(told):>12,}")
    print(f"requests settled                                {len(found):>12,}")
    print(f"reservations in doubt                           {len(doubt):>12,}")
    print(f"nano-dollars of the answers seen, by the stub   {seen:>12,}")
    print(f"nano-dollars of settled answers nobody saw      {unseen:>12,}")
    print(f"nano-dollars settled, by the key's total        {settled:>12,}")
    for words, holds in {
        "every answer seen is settled at what the stub counted, to the nano-dollar": all(
            found.get(name) == cost for name, cost in told.items()
        ),
        "every answer told its client that cost": all(stated),
        "the key's total is the sum of its requests": settled == seen + unseen and not differences,
        "every settled request is in the served log at its cost": all(
            round(logged.get(name, -1.0) * 1e9) == cost for name, cost in found.items()
        ),
        "every call that the stub served is settled or in doubt": len(found)
        <= served
        <= len(found) + len(doubt),
        "no more is in doubt than was under way, nothing else is open": open_
        == {one.request for one in doubt}
        and len(doubt) <= 24 * KILLS,
    }.items():
        print(f"{'yes' if holds else 'NO':>4}  {words}")


def _stated(got: Got) -> int:
    """Nano-dollars that an answer says it cost."""
    text = got.headers.get("x-pointsman-cost-usd")
    if text is None:
        text = got.body.partition(b": x-pointsman-cost-usd ")[2].partition(b"\n")[0].decode()
    return round(float(text) * 1e9)


def check_reload(folder: Path, ports: tuple[int, int]) -> None:
    """Change policy and models many times while streams run and short requests come and go."""
    from policies import save_policy

    policy, secret = prepare(folder, ports[0])
    save_policy(folder / "other.safetensors", seed=10)
    shutil.copy(folder / "policy.safetensors", folder / "first.safetensors")
    log = folder / "log"

    async def scenario(server: Process) -> None:
        pool = Pool("127.0.0.1", server.port, False)
        data = request(server, True, stub={"tokens": 120, "delay": 0.05})
        streams = [asyncio.create_task(exchange(pool, data)) for _ in range(STREAMS)]
        while sum((await _running(ports[0])).values()) < STREAMS:
            await asyncio.sleep(0.01)
        stopped, points, failed = asyncio.Event(), Counter[str](), Counter[int]()

        async def client() -> None:
            while not stopped.is_set():
                got = await exchange(pool, request(server, False, "one two"))
                points[got.headers.get("x-pointsman-point", "none")] += 1
                failed[got.status] += got.status != 200

        clients = [asyncio.create_task(client()) for _ in range(4)]
        start, done = time.monotonic(), 0
        for number in range(RELOADS):
            source = folder / f"{('other', 'first')[number % 2]}.safetensors"
            shutil.copy(source, folder / "next")
            (folder / "next").replace(folder / "policy.safetensors")
            write_models(folder, policy.models, ports[0], ("cheap", "certified")[number % 2])
            os.kill(server.handle.pid, signal.SIGHUP)
            done = await _reloaded(log, number + 1)
            await asyncio.sleep(0.1)
        took, still = time.monotonic() - start, sum(not each.done() for each in streams)
        stopped.set()
        await asyncio.gather(*clients)
        got = await asyncio.gather(*streams)
        tokens = [each.body.count(b'"content": ') - 1 for each in got]  # the first says nothing
        print(f"{STREAMS} streams under way, {done} reloads in {took:.1f} s")
        print(f"streams under way after the last reload         {still:>6}")
        print(f"streams that came to their end                  {sum(g.whole for g in got):>6}")
        print(f"of 120 tokens each                              {tokens.count(120):>6}")
        kept = Counter(each.headers["x-pointsman-point"] for each in got)
        print(f"the point they began with                       {dict(kept)}")
        print(f"short requests meanwhile, by point              {dict(points)}")
        print(f"short requests that failed                      {sum(failed.values()):>6}")

    with (
        stub(ports[0], 5, 0.0),
        gateway(folder, secret, ports[1], log=log) as server,
    ):
        asyncio.run(scenario(server))


async def _running(port: int) -> dict[str, int]:
    return dict(json.loads(await get(port, "/counts"))["running"])


async def _reloaded(log: Path, times: int) -> int:
    """How often the log says that policy and models were read anew, once it says so often enough.

    The file's change and the signal may each be noticed, so there may be more.
    """
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = log.read_text().count('"reloaded')
        if found >= times:
            return found
        await asyncio.sleep(0.01)
    raise SystemExit(f"not reloaded {times} times: {log.read_text()[-1000:]}")
