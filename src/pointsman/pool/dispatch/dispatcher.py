"""A scheduler that runs the calls of a planner side by side.

As in Gradientsys (2025): a planner in a loop of thought, action and observation may emit several
calls in one turn. Calls that need nothing run at once, the others when what they need is done. A
semaphore per agent, not the planner, keeps its capacity. A call that errs or times out is tried
again; after the last attempt the words of the failure are what the planner sees next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any

from pointsman.errors import InputError, reason
from pointsman.pool.dispatch.calls import Agent, Call
from pointsman.pool.dispatch.events import Event, Kind, State

# From the state of the run to further calls; none if there is nothing to add.
Planner = Callable[[State], Sequence[Call] | Awaitable[Sequence[Call]]]


class Dispatcher:
    """Run a planner's calls until it has nothing to add.

    The planner is asked at the start, whenever a call was given up (others go on running), when
    one was refused, and when nothing runs any more. A refused call is no error of the run: the
    planner sees the words in `State.refused`. What is still waiting when the run ends is reported
    as failed, so that every call is either done or failed.

    Args:
        agents: each with a name of its own.
        turns: times that the planner may be asked; without this cap it could replan for ever.
        together: calls of all agents at a time, or None. 1 is a sequential run.
        on_event: called with each event as it happens, for a user interface.

    Attributes:
        log: events of the latest run.

    Raises:
        InputError: two agents of one name, or a cap below 1.

    Source: "Gradientsys: A Multi-Agent LLM Scheduler with ReAct Orchestration" (2025). Numbers of
    attempts and turns are not given there. Ours: a call may name what it needs and what it
    replaces; needs must be planned earlier, so there are no cycles; the planner is not asked after
    each success.
    """

    def __init__(
        self,
        agents: Iterable[Agent],
        *,
        turns: int = 20,
        together: int | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        given = list(agents)
        self.agents = {agent.name: agent for agent in given}
        if len(self.agents) < len(given):
            raise InputError(f"agents need names of their own, got {[a.name for a in given]}")
        if turns < 1 or (together is not None and together < 1):
            raise InputError(f"turns and together must be 1 or more, got {turns} and {together}")
        self.turns = turns
        self.together = together
        self.on_event = on_event
        self.log: list[Event] = []

    async def run(self, planner: Planner) -> State:
        """Ask, run and observe until the planner adds nothing, or the cap on turns is reached."""
        run = _Run(self)
        try:
            await run.loop(planner)
        finally:
            await run.stop()
        return run.state


class _Run:
    """One run: its state, its semaphores and its tasks."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.agents = dispatcher.agents
        self.turns = dispatcher.turns
        self.on_event = dispatcher.on_event
        self.log = dispatcher.log = []
        self.state = State()
        self.tasks: dict[asyncio.Task[None], str] = {}
        self.begun: set[str] = set()
        self.free = {a.name: asyncio.Semaphore(a.capacity) for a in self.agents.values()}
        self.all = asyncio.Semaphore(dispatcher.together or max(len(self.agents), 1) * 10**6)
        self.start = asyncio.get_running_loop().time()

    def note(self, kind: Kind, call: str = "", data: Any = None) -> None:
        event = Event(kind, asyncio.get_running_loop().time() - self.start, call, data)
        self.log.append(event)
        self.state.apply(event)
        if self.on_event:
            self.on_event(event)

    async def loop(self, planner: Planner) -> None:
        ask, ended = True, "the planner had nothing to add"
        while True:
            changed = False
            if ask and self.state.turns < self.turns:
                changed = await self.ask(planner)
            elif ask:
                ended = f"the planner was asked {self.turns} times, which is the most allowed"
            self.begin()
            if self.tasks:
                ask = await self.observe()
            elif not changed:
                break
            else:  # only refusals, or nothing that could start: the planner hears of it
                ask = True
        for call in self.state.calls.values():
            if call.id not in self.state.results and call.id not in self.state.failures:
                self.note("failed", call.id, f"never started: {self.lacking(call)}")
        self.note("ended", data=ended)

    async def ask(self, planner: Planner) -> bool:
        """Whether the planner said anything."""
        self.note("turn")
        answer = planner(self.state)
        calls = await answer if isawaitable(answer) else answer
        for call in calls:
            words = self.objection(call)
            if words:
                self.note("refused", call.id, words)
            else:
                self.note("planned", call.id, call)
        return len(calls) > 0

    def objection(self, call: Call) -> str:
        known = self.state.calls
        if call.agent not in self.agents:
            return f"there is no agent {call.agent!r}; there are {sorted(self.agents)}"
        if call.id in known:
            return f"the id {call.id!r} was used before"
        unknown = [need for need in call.needs if need not in known]
        if unknown:
            return f"calls must be planned before those that need them; {unknown} were not"
        if call.replaces and call.replaces not in self.state.open_failures:
            return f"{call.replaces!r} is no failed call that still needs replacing"
        if call.replaces and self.circular(call):
            return f"it needs, at some remove, the failed {call.replaces!r} that it replaces"
        return self.agents[call.agent].objection(call.arguments)

    def circular(self, call: Call) -> bool:
        """Whether a call waits, at some remove, for what it is to replace."""
        stack, seen = list(call.needs), set[str]()
        while stack:
            need = self.state.stands_for(stack.pop())
            if need == call.replaces:
                return True
            if need not in seen:
                seen.add(need)
                stack.extend(self.state.calls[need].needs)
        return False

    def begin(self) -> None:
        """Hand every call that has what it needs to its agent; capacity is kept there."""
        for call in self.state.calls.values():
            if call.id not in self.begun and self.state.ready(call):
                self.begun.add(call.id)
                self.tasks[asyncio.create_task(self.attempt(call))] = call.id

    async def attempt(self, call: Call) -> None:
        agent, inputs = self.agents[call.agent], self.state.inputs(call)
        for turn in range(agent.retries + 1):
            if turn:
                await asyncio.sleep(agent.pause * 2 ** (turn - 1))
            async with self.free[agent.name], self.all:
                self.note("started", call.id)
                try:
                    async with asyncio.timeout(agent.timeout) as limit:
                        result = await agent.work(call.arguments, inputs)
                except Exception as error:  # whatever an agent raises is an observation
                    words = reason(error)
                    if limit.expired():
                        words = f"no answer within {agent.timeout:g} s"
                    self.note("attempt failed", call.id, words)
                else:
                    self.note("done", call.id, result)
                    return
        self.note("failed", call.id, f"failed {agent.retries + 1} times, the last time: {words}")

    async def observe(self) -> bool:
        """Wait for a call to end; whether the planner should be asked."""
        done, _ = await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [self.tasks.pop(task) for task in done]
        for task in done:
            task.result()  # an error here is one of our own
        failed = any(call in self.state.failures for call in ended)
        waiting = any(
            c.id not in self.begun and self.state.ready(c) for c in self.state.calls.values()
        )
        return failed or not (self.tasks or waiting)

    def lacking(self, call: Call) -> str:
        state = self.state
        return ", ".join(
            f"{need} failed" if state.stands_for(need) in state.failures else f"{need} is not done"
            for need in call.needs
            if state.stands_for(need) not in state.results
        )

    async def stop(self) -> None:
        """Leave nothing running behind, whatever happened."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
