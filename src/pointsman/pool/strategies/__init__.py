"""Whom to ask, whom to ask next, and whose answer to give."""

from pointsman.pool.strategies.before_call import BeforeCall
from pointsman.pool.strategies.chain import Chain
from pointsman.pool.strategies.routed_cascade import RoutedCascade
from pointsman.pool.strategies.single import Single

__all__ = ["BeforeCall", "Chain", "RoutedCascade", "Single"]
