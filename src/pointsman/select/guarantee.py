"""What a selection promises about leaks between inputs, as data that a test can read.

A decoder that writes one token at a time may only use selections that are causal; a service whose
answers must not depend on who else is in the batch needs one that is batch independent. So every
selection declares both, and the tests probe every declaration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pointsman.errors import RouteError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Guarantee:
    """Two promises of a selection. The first implies the second.

    Args:
        batch_independent: an input's route never depends on the other inputs of its batch.
        causal: an input's route never depends on later inputs (rows further down).

    Raises:
        RouteError: batch independent but not causal.
    """

    batch_independent: bool
    causal: bool

    def __post_init__(self) -> None:
        if self.batch_independent and not self.causal:
            raise RouteError("a batch independent selection is causal too, got causal=False")


def guarantees(
    *,
    batch_independent: bool,
    causal: bool,
    unless: Mapping[tuple[str, object], Guarantee] | None = None,
    given: Mapping[str, Guarantee] | None = None,
) -> Callable[[Function], Function]:
    """Decorator that writes a `Guarantee` on a selection, as its attribute `guarantee`.

    Args:
        batch_independent: see `Guarantee`.
        causal: see `Guarantee`.
        unless: (keyword, value) to the guarantee that holds instead with that argument.
        given: keyword to the guarantee that holds instead where that argument is not None.
    """
    guarantee = Guarantee(batch_independent, causal)
    exceptions, optional = dict(unless or {}), dict(given or {})

    def declare(function: Function) -> Function:
        function.guarantee = guarantee  # type: ignore[attr-defined]
        function.guarantee_unless = exceptions  # type: ignore[attr-defined]
        function.guarantee_given = optional  # type: ignore[attr-defined]
        return function

    return declare


def guarantee_of(function: Callable[..., Any]) -> Guarantee:
    """The guarantee of a selection called as it is; keywords bound by `functools.partial` count.

    Raises:
        RouteError: the function declares none.
    """
    bound: dict[str, object] = {}
    while isinstance(function, partial):
        bound = {**function.keywords, **bound}  # the outermost partial has the last word
        function = function.func
    guarantee = getattr(function, "guarantee", None)
    if not isinstance(guarantee, Guarantee):
        name = getattr(function, "__qualname__", repr(function))
        raise RouteError(
            f"{name} declares no guarantee: decorate it with "
            "@guarantees(batch_independent=..., causal=...)"
        )
    exceptions: Mapping[tuple[str, object], Guarantee] = getattr(function, "guarantee_unless", {})
    for (keyword, value), exception in exceptions.items():
        if keyword in bound and bound[keyword] == value:
            return exception
    optional: Mapping[str, Guarantee] = getattr(function, "guarantee_given", {})
    for keyword, exception in optional.items():
        if bound.get(keyword) is not None:
            return exception
    return guarantee
