"""Recursion: one shared stack of layers, which each token goes through as often as it needs."""

from pointsman.depth.recursion.costs import TokenCosts, token_costs
from pointsman.depth.recursion.mixture import MixtureOfRecursions, Recursed, attend_only, generate
from pointsman.depth.recursion.routers import (
    Chosen,
    DepthRouter,
    EveryToken,
    ExpertChoice,
    RandomTokens,
    TokenChoice,
)

__all__ = [
    "Chosen",
    "DepthRouter",
    "EveryToken",
    "ExpertChoice",
    "MixtureOfRecursions",
    "RandomTokens",
    "Recursed",
    "TokenChoice",
    "TokenCosts",
    "attend_only",
    "generate",
    "token_costs",
]
