"""The log of a run, and the state that it amounts to.

The dispatcher changes its state only by `State.apply`, so a log read back later replays to the
state in which the run ended.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from pointsman.errors import InputError
from pointsman.pool.dispatch.calls import Call

Kind = Literal["turn", "planned", "refused", "started", "attempt failed", "done", "failed", "ended"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        kind: "turn" (the planner was asked), "planned" (a call was taken in), "refused" (it was
            not), "started" (an attempt), "attempt failed", "done", "failed" (given up) or "ended".
        time: seconds since the run began.
        call: id of the call; empty for "turn" and "ended".
        data: the call planned, the result of one done, and words for what went wrong.
    """

    kind: Kind
    time: float
    call: str = ""
    data: Any = None

    def to_line(self) -> str:
        """One line of JSON; a result that is not plain data is refused by `json`."""
        data = asdict(self.data) if isinstance(self.data, Call) else self.data
        return json.dumps({"kind": self.kind, "time": self.time, "call": self.call, "data": data})

    @classmethod
    def from_line(cls, line: str) -> Self:
        """Read a line of `to_line`."""
        found = json.loads(line)
        if found["kind"] == "planned":
            found["data"]["needs"] = tuple(found["data"]["needs"])
            found["data"] = Call(**found["data"])
        return cls(**found)


@dataclass
class State:
    """Where a run stands.

    Attributes:
        calls: every call taken in, by id, in the order planned.
        results: of the calls that are done.
        failures: words of the calls that were given up, or never could start.
        refused: id and words of calls that were not taken in.
        attempts: begun so far, by id.
        running: ids of calls with an attempt under way.
        replaced: id of a failed call to the id of the one that stands in for it.
        turns: times the planner was asked.
        ended: words for why the run ended; empty while it goes on.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    turns: int = 0
    ended: str = ""

    def apply(self, event: Event) -> None:
        """Take in the next event."""
        if event.kind == "turn":
            self.turns += 1
        elif event.kind == "planned":
            self.calls[event.call] = event.data
            if event.data.replaces:
                self.replaced[event.data.replaces] = event.call
        elif event.kind == "refused":
            self.refused.append((event.call, event.data))
        elif event.kind == "started":
            self.attempts[event.call] = self.attempts.get(event.call, 0) + 1
            self.running.add(event.call)
        elif event.kind == "ended":
            self.ended = event.data
        else:
            self.running.discard(event.call)
            if event.kind == "done":
                self.results[event.call] = event.data
            elif event.kind == "failed":
                self.failures[event.call] = event.data

    def stands_for(self, call: str) -> str:
        """The id of the latest call that stands in for one, or its own."""
        while call in self.replaced:
            call = self.replaced[call]
        return call

    @property
    def open_failures(self) -> dict[str, str]:
        """Failures that no other call stands in for."""
        return {c: words for c, words in self.failures.items() if c not in self.replaced}

    def ready(self, call: Call) -> bool:
        """Whether everything that a call needs is done."""
        return all(self.stands_for(need) in self.results for need in call.needs)

    def inputs(self, call: Call) -> dict[str, Any]:
        """Results of what a call needs, by the ids that it names."""
        return {need: self.results[self.stands_for(need)] for need in call.needs}


def replay(events: Iterable[Event]) -> State:
    """The state after some events.

    Raises:
        InputError: an event about a call that was never planned.
    """
    state = State()
    for event in events:
        if event.kind not in ("turn", "planned", "refused", "ended") and (
            event.call not in state.calls
        ):
            raise InputError(
                f"the log is incomplete: {event.kind!r} of {event.call!r}, which was never planned"
            )
        state.apply(event)
    return state
