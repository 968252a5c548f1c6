"""Keeping a part inside another: its class by name beside its state."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pointsman.errors import PolicyError
from pointsman.pool.online.bandit import State
from pointsman.pool.saving import Arrays, Plain, Saved

Part = TypeVar("Part")
PartsByName = Mapping[str, type[Part]]


def written(part: Saved) -> State:
    """The state of a part with the name of its class under "kind"."""
    plain, arrays = part.to_state()
    return {"kind": type(part).__name__, "state": plain}, arrays


def restored(kinds: Mapping[str, Any], plain: Plain, arrays: Arrays) -> Any:
    """The part that `written` wrote.

    Raises:
        PolicyError: a kind that is not among `kinds`.
    """
    kind = str(plain.get("kind"))
    if kind not in kinds:
        raise PolicyError(f"the state is of a {kind!r}, which is none of {', '.join(kinds)}")
    return kinds[kind].from_state(plain["state"], arrays)
