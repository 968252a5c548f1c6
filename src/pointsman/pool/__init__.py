"""Model level: which model of a pool answers an input."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointsman.pool.cascade import Cascade

__all__ = ["Cascade"]


def __getattr__(name: str) -> Any:
    """`Cascade` runs torch, which a server that only routes need not load."""
    if name == "Cascade":
        from pointsman.pool.cascade import Cascade

        return Cascade
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
