"""Calls planned step by step: order, capacity, retries, replanning, and a log that replays."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from pointsman.errors import InputError
from pointsman.pool.dispatch import Agent, Call, Dispatcher, Event, State, replay
from pointsman.pool.simulate.virtual_time import run_virtually


async def add(arguments: Any, inputs: Any) -> Any:
    await asyncio.sleep(arguments["seconds"])
    return arguments["seconds"] + sum(inputs.values())


def flaky(fails: int) -> Any:
    seen: Counter[float] = Counter()

    async def work(arguments: Any, inputs: Any) -> Any:
        await asyncio.sleep(1)
        seen[arguments["seconds"]] += 1
        if seen[arguments["seconds"]] <= fails:
            raise RuntimeError("out of order")
        return 7.0

    return work


def agent(name: str = "adder", work: Any = add, **options: Any) -> Agent:
    return Agent(name, work, {"seconds": float}, **options)


def call(id: str, *needs: str, seconds: float = 1.0, agent: str = "adder", **more: Any) -> Call:
    return Call(id, agent, {"seconds": seconds}, needs, **more)


def once(*calls: Call) -> Any:
    return lambda state: calls if not state.calls else ()


def run(planner: Any, *agents: Agent, **options: Any) -> tuple[State, list[Event]]:
    dispatcher = Dispatcher(agents, **options)
    state = run_virtually(dispatcher.run(planner))
    return state, dispatcher.log


def test_independent_calls_run_at_once_and_dependent_ones_wait_for_results() -> None:
    state, log = run(
        once(call("a", seconds=2.0), call("b", seconds=3.0), call("c", "a", "b")),
        agent(capacity=3),
    )
    assert state.results == {"a": 2.0, "b": 3.0, "c": 6.0}
    assert log[-1].time == pytest.approx(4.0)
    assert not state.failures


def test_capacity_is_kept_per_agent_and_over_all() -> None:
    calls = [call(f"{i}", agent="adder" if i % 2 else "other") for i in range(12)]
    agents = agent(capacity=2), agent("other", capacity=3)
    _, log = run(once(*calls), *agents)
    most: Counter[str] = Counter()
    state = State()
    for event in log:
        state.apply(event)
        now = Counter(state.calls[c].agent for c in state.running)
        most |= now
    assert most == {"adder": 2, "other": 3}
    assert log[-1].time == pytest.approx(3.0)
    assert run(once(*calls), *agents, together=1)[1][-1].time == pytest.approx(12.0)


def test_a_failed_attempt_is_retried_after_a_pause_that_doubles() -> None:
    state, log = run(once(call("a")), agent(work=flaky(2), retries=2, pause=10.0))
    assert state.results == {"a": 7.0}
    assert state.attempts == {"a": 3}
    assert [e.time for e in log if e.kind == "started"] == pytest.approx([0, 11, 32])


def test_after_the_last_retry_the_words_reach_the_planner_who_may_replace_the_call() -> None:
    seen = []

    def planner(state: State) -> list[Call]:
        seen.append(dict(state.open_failures))
        if not state.calls:
            return [call("a", agent="flaky"), call("b", "a")]
        return [call("a2", seconds=5.0, replaces="a")] if "a" in state.open_failures else []

    state, _ = run(planner, agent(), agent("flaky", flaky(9), retries=1))
    assert "out of order" in seen[1]["a"]
    assert "2 times" in seen[1]["a"]
    assert state.results == {"a2": 5.0, "b": 6.0}
    assert state.open_failures == {}


def test_what_waits_for_a_failed_call_is_reported_failed_with_the_reason() -> None:
    state, _ = run(once(call("a"), call("b", "a"), call("c", "b")), agent(work=flaky(9)))
    assert set(state.failures) == {"a", "b", "c"}
    assert state.failures["b"] == "never started: a failed"


def test_a_call_that_takes_too_long_is_cut_off() -> None:
    state, log = run(once(call("a", seconds=9.0)), agent(timeout=2.0, retries=1))
    assert "no answer within 2 s" in state.failures["a"]
    assert log[-1].time == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (call("a", agent="nobody"), "no agent"),
        (call("a", "later"), "planned before"),
        (Call("a", "adder", {}), "missing"),
        (Call("a", "adder", {"seconds": "1"}), "takes"),
        (call("a", replaces="z"), "no failed call"),
    ],
)
def test_a_bad_call_is_refused_and_the_planner_hears_why(bad: Call, words: str) -> None:
    def planner(state: State) -> list[Call]:
        if state.refused:
            assert words in state.refused[0][1]
            return [call("a")] if not state.calls else []
        return [bad]

    state, _ = run(planner, agent())
    assert state.results == {"a": 1.0}
    assert len(state.refused) == 1


def test_an_id_is_used_once_and_a_stand_in_may_not_wait_for_what_it_replaces() -> None:
    def planner(state: State) -> list[Call]:
        if not state.calls:
            return [call("a", agent="flaky"), call("b", "a"), call("b")]
        if state.turns == 2:
            return [call("c", "b", replaces="a")]
        return []

    state, _ = run(planner, agent(), agent("flaky", flaky(9)))
    assert [id for id, _ in state.refused] == ["b", "c"]
    assert set(state.failures) == {"a", "b"}


def test_replanning_without_end_is_stopped_by_the_cap_on_turns() -> None:
    def planner(state: State) -> list[Call]:
        last = [*state.open_failures][-1:]
        return [call(f"{state.turns}", agent="flaky", replaces=last[0] if last else "")]

    state, _ = run(planner, agent("flaky", flaky(99), retries=0), turns=4)
    assert state.turns == 4
    assert "4 times" in state.ended
    assert set(state.failures) == set(state.calls)
    refusing, _ = run(lambda state: [call("a", agent="nobody")], agent(), turns=3)
    assert refusing.turns == 3


def test_the_log_replays_to_the_final_state_also_from_lines() -> None:
    def planner(state: State) -> list[Call]:
        if not state.calls:
            return [call("a", agent="flaky"), call("b", "a"), call("x", agent="nobody")]
        return [call("a2", replaces="a")] if "a" in state.open_failures else []

    heard: list[Event] = []
    state, log = run(planner, agent(), agent("flaky", flaky(9)), on_event=heard.append)
    assert heard == log
    assert replay(log) == state
    assert replay(Event.from_line(event.to_line()) for event in log) == state
    with pytest.raises(InputError, match="incomplete"):
        replay(log[4:])


def test_when_the_planner_errs_nothing_goes_on_running() -> None:
    ended = []

    async def slow(arguments: Any, inputs: Any) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(arguments["seconds"])

    async def planner(state: State) -> list[Call]:
        if state.failures:
            raise KeyError("plan")
        return [call("a", agent="slow"), call("b")]

    with pytest.raises(KeyError):
        run(planner, agent(work=flaky(9), retries=0), agent("slow", slow))
    assert ended == [1.0]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="capacity"):
        agent(capacity=0)
    with pytest.raises(InputError, match="own"):
        Dispatcher([agent(), agent()])
    with pytest.raises(InputError, match="1 or more"):
        Dispatcher([agent()], turns=0)


def test_virtual_time_refuses_to_wait_for_what_never_comes() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(InputError, match="timers"):
        run_virtually(forever())


def test_it_runs_on_an_ordinary_event_loop_too() -> None:
    dispatcher = Dispatcher([agent(capacity=2)])
    state = asyncio.run(dispatcher.run(once(call("a", seconds=0.001), call("b", "a", seconds=0.0))))
    assert state.results == {"a": 0.001, "b": 0.001}
