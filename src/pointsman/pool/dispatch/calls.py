"""What a planner may ask for: agents with typed arguments and a capacity, and calls to them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pointsman.errors import InputError


@dataclass(frozen=True)
class Call:
    """One piece of work for one agent.

    Args:
        id: unlike that of every other call of the run.
        agent: name of the agent.
        arguments: by name, as the agent's `accepts` says.
        needs: ids of calls planned earlier; their results are handed over with the arguments.
        replaces: id of a failed call that this one stands in for: whatever needs that one then
            waits for this one, and gets its result under the old id.
    """

    id: str
    agent: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    replaces: str = ""


# Arguments of the call, and results of the calls it needs by their ids.
Work = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Agent:
    """Something that does one kind of work, so many at a time.

    Args:
        name: as calls say it.
        work: coroutine function of the arguments and of what was needed.
        accepts: name and type of every argument; each must be given, and no other.
        capacity: calls at a time, at least 1.
        retries: further attempts after one that fails.
        timeout: seconds for one attempt.
        pause: seconds before the first retry, doubled before each further one; while a call
            pauses it takes up no capacity.

    Raises:
        InputError: a number out of range.
    """

    name: str
    work: Work
    accepts: Mapping[str, type] = field(default_factory=dict)
    capacity: int = 1
    retries: int = 2
    timeout: float = 60.0
    pause: float = 0.0

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.retries < 0 or not self.timeout > 0 or not self.pause >= 0:
            raise InputError(
                f"agent {self.name!r} needs a capacity of 1 or more, retries and a pause of 0 or "
                f"more and a timeout above 0, got {self.capacity}, {self.retries}, {self.pause} "
                f"and {self.timeout}"
            )

    def objection(self, arguments: Mapping[str, Any]) -> str:
        """What is wrong with arguments, in words for the planner; empty if nothing is."""
        missing = sorted(set(self.accepts) - set(arguments))
        unknown = sorted(set(arguments) - set(self.accepts))
        if missing or unknown:
            return f"{self.name} takes {sorted(self.accepts)}: missing {missing}, unknown {unknown}"
        wrong = [n for n, kind in self.accepts.items() if not isinstance(arguments[n], kind)]
        if wrong:
            wanted = {name: self.accepts[name].__name__ for name in wrong}
            return f"{self.name} takes {wanted}, got { ({n: arguments[n] for n in wrong})!r}"
        return ""
