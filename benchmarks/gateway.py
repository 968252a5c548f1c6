"""What the gateway adds to a request, beside LiteLLM's proxy in the same run.

    python benchmarks/gateway.py [--litellm PYTHON_OR_BIN] [--rounds 3] [--first]
    python benchmarks/gateway.py --memory 100000
    python benchmarks/gateway.py --ledger
    python benchmarks/gateway.py --reload

Without another task: one request after another, and 32 at once, whole answers and streams, in
rounds (stub alone, ours, theirs, ours, ...). Each gateway is held to one core, the same; stub and
load share the other. Ours has keys (with a budget) and the ledger in SQLite on, and chooses the
model by the text; LiteLLM has a master key, one worker and no database, and no choice to make.
Latencies are to the last byte; "added" is against the stub alone in the same round. Processor time
is that of the gateway's processes, from /proc. Figures are medians over rounds.

The other tasks: memory over many requests; the ledger after kill -9 under load; streams across
reloads of policy and models.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from gateway_checks import check_ledger, check_reload, watch_memory
from gateway_rig import CORES, NICE, Process, gateway, litellm, load, prepare, stub

from pointsman.pool.policy import PoolPolicy

STUB, GATEWAY, OTHER = 9311, 9312, 9313
Cell = tuple[str, bool, int]  # server, whether it streams, requests at once
Row = dict[str, float]
CELLS = [(stream, at_once) for stream in (False, True) for at_once in (1, 32)]
MORE = 4  # times the requests for the stub and for ours, which take a tenth of the time
FIGURES = ("p50", "p99", "first p50", "CPU", "per second", "busy")


def measure(server: Process, stream: bool, requests: int, at_once: int) -> Row:
    """Warm up, then measure: milliseconds, requests per second, and the share of a core used."""
    asyncio.run(load(server, [stream], max(10, 2 * at_once), at_once))
    before = server.cpu()
    done, took = asyncio.run(load(server, [stream], requests, at_once))
    spent = server.cpu() - before
    p50, p99 = np.quantile([got.last for got in done], [0.5, 0.99]) * 1e3
    first = float(np.median([got.first for got in done])) * 1e3
    values = (p50, p99, first, spent / requests * 1e3, requests / took, spent / took)
    return dict(zip(FIGURES, map(float, values), strict=True))


def rounds(servers: Sequence[Process], count: int, requests: int) -> dict[Cell, Row]:
    """Medians over rounds, by server, kind and number at once; added latencies beside."""
    found: dict[Cell, list[Row]] = defaultdict(list)
    for _ in range(count):
        for stream, at_once in CELLS:
            for server in servers:
                n = requests if server.name == "LiteLLM" else MORE * requests
                n *= 1 if at_once == 1 else 2
                row = measure(server, stream, n, at_once)
                alone = row if server.name == "stub" else found["stub", stream, at_once][-1]
                for name in ("p50", "p99", "first p50"):
                    row[f"added {name}"] = row[name] - alone[name]
                found[server.name, stream, at_once].append(row)
    return {
        cell: {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
        for cell, rows in found.items()
    }


def show(found: dict[Cell, Row]) -> None:
    """Print the figures and the ratios."""
    columns = ("added p50", "added p99", "added first p50", "p50", "p99", "CPU", "per second")
    print(
        f"{'':<28}"
        + "".join(f"{name:>17}" for name in (*columns, "core busy"))
        + "\n"
        + f"{'':<28}"
        + "".join(f"{unit:>17}" for unit in ("ms",) * 6 + ("", "share"))
    )
    for stream, at_once in CELLS:
        for (name, *cell), row in found.items():
            if cell == [stream, at_once]:
                kind = "streams" if stream else "whole"
                figures = "".join(f"{row[each]:17.2f}" for each in (*columns, "busy"))
                print(f"{name:<10}{kind:<9}{at_once:>2} at once{figures}")
    for stream, at_once in CELLS:
        ours = found["pointsman", stream, at_once]
        theirs = found.get(("LiteLLM", stream, at_once))
        if theirs is not None:
            print(
                f"{'streams' if stream else 'whole'}, {at_once} at once: "
                f"{ours['per second'] / theirs['per second']:.1f} x LiteLLM's requests per second, "
                f"1/{theirs['CPU'] / ours['CPU']:.1f} of its processor time, "
                f"1/{theirs['added p50'] / ours['added p50']:.1f} of its added p50"
            )


def decisions(policy: PoolPolicy, point: str, times: int = 300) -> None:
    """Print what a decision alone takes."""
    where = policy.point(point)
    took = []
    for i in range(times):
        start = time.perf_counter()
        policy.decide(f"Explain why the sum of two odd numbers is even, case {i}.", point=where)
        took.append(time.perf_counter() - start)
    p50, p99 = np.quantile(took, [0.5, 0.99]) * 1e3
    print(f"a decision alone: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def compare(folder: Path, given: argparse.Namespace) -> None:
    """Ours, and LiteLLM's where it is given."""
    policy, secret = prepare(folder, STUB)
    if given.first:
        os.nice(NICE)
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {CORES[1]})
    decisions(policy, given.point)
    options = {"first": given.first}
    with ExitStack() as stack:
        upstream = stack.enter_context(stub(STUB, given.tokens, given.delay, **options))
        upstream.model = policy.models[0]
        model = f"pointsman:{given.point}"
        ours = stack.enter_context(
            gateway(folder, secret, GATEWAY, model=model, core=CORES[0], **options)
        )
        servers = [upstream, ours]
        if given.litellm:
            servers.append(
                stack.enter_context(
                    litellm(given.litellm, folder, policy.models, OTHER, STUB, given.first)
                )
            )
            time.sleep(5)  # it goes on starting for a while
        start, before = time.monotonic(), os.getloadavg()[0]
        show(rounds(servers, given.rounds, given.requests))
        for server in servers[1:]:
            print(f"memory held by {server.name}: {sum(server.resident()):.0f} MiB")
        print(
            f"{time.monotonic() - start:.0f} s; load average {before:.1f} before, "
            f"{os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores; gateways on core "
            f"{CORES[0]}, stub and load on core {CORES[1]}"
            + (f", all at nice {NICE}" if given.first else "")
        )


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", help="a Python that has litellm[proxy], or its command")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100, help="of LiteLLM, one after another")
    parser.add_argument("--tokens", type=int, default=40, help="in an answer: pieces of a stream")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds between them")
    parser.add_argument("--point", default="0.5", help="of the policy")
    parser.add_argument("--first", action="store_true", help="before other work (needs root)")
    parser.add_argument("--memory", type=int, metavar="REQUESTS")
    parser.add_argument("--workers", type=int, default=1, help="processes, with --memory")
    parser.add_argument("--ledger", action="store_true")
    parser.add_argument("--reload", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.memory:
            watch_memory(folder, given.memory, given.workers, given.tokens, (STUB, GATEWAY))
        elif given.ledger:
            check_ledger(folder, (STUB, GATEWAY))
        elif given.reload:
            check_reload(folder, (STUB, GATEWAY))
        else:
            compare(folder, given)


if __name__ == "__main__":
    main()
