"""What `torch.compile` leaves to Python. Imported while it compiles only, as its import is slow."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch

Result = TypeVar("Result")
Given = TypeVarTuple("Given")


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="who goes where is known from the values of the scores alone"
)
def uncompiled(function: Callable[[*Given], Result], *given: *Given) -> Result:
    """The function's result; the graph is broken before and goes on after it."""
    return function(*given)
