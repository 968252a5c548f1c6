"""Routers: features of tokens, and what else is known of them, to scores."""

from pointsman.moe.routers.base import Router, Scored

__all__ = ["Router", "Scored"]
