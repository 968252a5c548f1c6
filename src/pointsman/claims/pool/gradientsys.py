"""Gradientsys: a planner emits several calls at once, and a scheduler runs them side by side.

"Gradientsys: A Multi-Agent LLM Scheduler with ReAct Orchestration" (2025, arXiv 2507.06520).

A central planner, in a loop of thought, action and observation, may call several agents in one
turn. The scheduler keeps every agent's capacity by a semaphore, runs what is independent side by
side, tries failed calls again, and after the last attempt lets the planner see the failure and
plan anew. The parts: `pool.dispatch` (real asyncio) and `pool.simulate.virtual_time`, an event
loop whose clock jumps, so that minutes pass at once and exactly.

What was settled:
- There is no language model: the planner knows the work to be done, a random directed acyclic graph
  of 6 layers of 4 calls, each of which needs one to three of the layer before. A call that failed
  for good it gives to the next of four agents, up to four turns in all.
- Each agent takes two calls at a time; an attempt takes 0.5 to 1.5 s, the same for a call however
  it is run, and fails with probability 0.2. There are two retries (the paper gives no number).
- Beside the sequential run (one call at a time) stands a scheduler by layers: it emits a layer,
  waits for all of it, and emits the next.
- This measures a scheduler, not what is reported of benchmarks for agents.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.pool.dispatch import Call, Event, Planner, State

GRAPHS, LAYERS, WIDTH, AGENTS = 60, 6, 4, 4
FAILS, RETRIES, CAPACITY, TURNS = 0.2, 2, 2, 4
Graph = Mapping[str, tuple[str, ...]]  # id of each call to what it needs, in order


def quick() -> None:
    """Independent calls overlap, capacity is kept, failures are replanned, the log replays."""
    from pointsman.pool.dispatch import Event, replay

    graph = _graph(0)
    state, log = _run(graph, 0, _replanning(graph))
    must(len(state.calls) >= len(graph), "every call was planned")
    must(set(state.results) | set(state.failures) == set(state.calls), "each is done or failed")
    must(_most(log) <= CAPACITY, "no agent ever runs more than its capacity")
    must(replay(Event.from_line(e.to_line()) for e in log) == state, "the log replays")
    place = {e.call: i for i, e in enumerate(log) if e.kind == "done"}
    for i, event in enumerate(log):
        if event.kind == "started":
            needs = state.calls[event.call].needs
            must(all(place[state.stands_for(n)] < i for n in needs), "needs are done first")
    alone, sequence = _run(graph, 0, _replanning(graph), together=1)
    spans = sum(e.data for e in sequence if e.kind == "done")
    must(sequence[-1].time >= spans and not alone.running, "one at a time takes the sum")
    must(log[-1].time < sequence[-1].time, "side by side is faster")


def _graph(seed: int) -> Graph:
    import numpy as np

    rng = np.random.default_rng(seed)
    found: dict[str, tuple[str, ...]] = {}
    for layer in range(LAYERS):
        for i in range(WIDTH):
            picked = rng.permutation(WIDTH)[: rng.integers(1, 4)]
            needs = tuple(f"{layer - 1}.{j}" for j in picked) if layer else ()
            found[f"{layer}.{i}"] = needs
    return found


def _call(id: str, graph: Graph, agent: int, replaces: str = "") -> "Call":
    from pointsman.pool.dispatch import Call

    name = id.split("#")[0]
    return Call(id, f"agent {agent % AGENTS}", {"work": name}, graph[name], replaces)


def _again(state: "State", graph: Graph) -> list["Call"]:
    """Each failed call to the next agent."""
    return [
        _call(f"{c.split('#')[0]}#{state.turns}", graph, int(state.calls[c].agent[-1]) + 1, c)
        for c in state.open_failures
    ]


def _replanning(graph: Graph) -> "Planner":
    """All calls at once; later what failed, to another agent."""
    firsts = [_call(id, graph, i) for i, id in enumerate(graph)]
    return lambda state: firsts if not state.calls else _again(state, graph)


def _by_layers(graph: Graph) -> "Planner":
    """A layer when the one before is done."""

    def planner(state: "State") -> Sequence["Call"]:
        if state.running or state.open_failures:
            return _again(state, graph)
        at = sum(id in graph for id in state.calls)
        return [_call(id, graph, i) for i, id in enumerate(graph)][at : at + WIDTH]

    return planner


def _run(
    graph: Graph,
    seed: int,
    planner: "Planner",
    *,
    turns: int = TURNS,
    retries: int = RETRIES,
    together: int | None = None,
) -> tuple["State", list["Event"]]:
    import asyncio
    from zlib import crc32

    import numpy as np

    from pointsman.pool.dispatch import Agent, Dispatcher
    from pointsman.pool.simulate.virtual_time import run_virtually

    tries: dict[str, int] = {}

    async def work(arguments: Mapping[str, Any], inputs: Mapping[str, Any]) -> float:
        name = arguments["work"]
        tries[name] = tries.get(name, 0) + 1
        rng = np.random.default_rng([seed, crc32(name.encode()), tries[name]])
        seconds, fate = rng.uniform(0.5, 1.5), rng.random()
        await asyncio.sleep(seconds)
        if fate < FAILS:
            raise RuntimeError("no result")
        return float(seconds)

    agents = [
        Agent(f"agent {i}", work, {"work": str}, capacity=CAPACITY, retries=retries)
        for i in range(AGENTS)
    ]
    dispatcher = Dispatcher(agents, turns=turns, together=together)
    state = run_virtually(dispatcher.run(planner))
    return state, dispatcher.log


def _most(log: Sequence["Event"]) -> int:
    """The most calls that any agent ran at a time, counted from the log alone."""
    from collections import Counter

    agents = {e.call: e.data.agent for e in log if e.kind == "planned"}
    running: Counter[str] = Counter()
    most = 0
    for event in log:
        if event.kind == "started":
            running[agents[event.call]] += 1
            most = max(most, running[agents[event.call]])
        elif event.kind == "attempt failed" or event.kind == "done":
            running[agents[event.call]] -= 1
    return most


def full(seed: int) -> Figures:
    """Seconds, calls done and rules kept, over 60 graphs."""
    from pointsman.pool.dispatch import replay

    rows: dict[str, list[float]] = {}
    for turn in range(GRAPHS):
        world = seed * 10_000 + turn
        graph = _graph(world)
        runs: dict[str, tuple[Planner, dict[str, int]]] = {
            "dispatched": (_replanning(graph), {}),
            "by layers": (_by_layers(graph), {"turns": LAYERS * TURNS}),
            "sequential": (_replanning(graph), {"together": 1}),
            "retries, no replanning": (_replanning(graph), {"turns": 1}),
            "neither": (_replanning(graph), {"turns": 1, "retries": 0}),
        }
        for name, (planner, options) in runs.items():
            state, log = _run(graph, world, planner, **options)
            done = sum(state.stands_for(id) in state.results for id in graph) / len(graph)
            told = set(state.results) | set(state.failures) == set(state.calls)
            seen = {
                "seconds": log[-1].time,
                "done": done,
                "most at a time": _most(log),
                "told": float(told and all(id in state.calls for id in graph)),
                "replayed": float(replay(log) == state),
            }
            for column, value in seen.items():
                rows.setdefault(f"{name}: {column}", []).append(value)
    return {
        name: max(values) if name.endswith("most at a time") else sum(values) / GRAPHS
        for name, values in rows.items()
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    calls = GRAPHS * LAYERS * WIDTH * len(measurements)
    reach = 1 - FAILS ** (RETRIES + 1)
    reach -= 2 * (reach * (1 - reach) / calls) ** 0.5
    kept = all(
        row["dispatched: most at a time"] <= CAPACITY
        and row["dispatched: told"] == 1
        and row["dispatched: replayed"] == 1
        for row in measurements
    )
    fast = at["dispatched: seconds"] <= 0.6 * at["sequential: seconds"]
    return kept and fast and at["dispatched: done"] >= reach


CLAIM = Claim(
    slug="gradientsys",
    paper="Gradientsys: A Multi-Agent LLM Scheduler with ReAct Orchestration",
    year=2025,
    arxiv="2507.06520",
    level="pool",
    claim="Several calls of one turn, run side by side under a capacity for each agent, with "
    "retries and replanning, take far less time than one after the other, and nothing gets lost.",
    baseline="The same planner with one call at a time; layer by layer; and the same scheduler "
    "without replanning, and without retries.",
    criterion="On random graphs of width 4, agents of capacity 2 that fail with probability 0.2, "
    "in the mean over seeds: at most 0.6 of the sequential time; at least 1 - 0.2^(retries + 1), "
    "less two standard errors, of all calls done; and, in every run, never more than capacity "
    "at a time, every call done or reported failed, and a log that replays to the final state.",
    quick=quick,
    full=full,
    decide=decide,
    composition="planner's turns with several calls · checked arguments · semaphore an agent · "
    "retries · replacement of failed calls · event log",
    entry="pointsman.pool.dispatch.Dispatcher",
    key={
        "seconds": "dispatched: seconds",
        "one at a time": "sequential: seconds",
        "by layers": "by layers: seconds",
        "done": "dispatched: done",
    },
    note="A third of the sequential time. Most of that comes from running side by side at all: "
    "layer by layer takes 12% more. Without replanning 93% of the calls are done, without retries "
    "as well 31%, as a lost call takes with it all that need it.",
)
