"""Model level: which model of a pool answers an input."""

from pointsman.pool.cascade import Cascade

__all__ = ["Cascade"]
