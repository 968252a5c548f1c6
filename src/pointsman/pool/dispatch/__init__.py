"""Calls to several agents, planned step by step and run side by side."""

from pointsman.pool.dispatch.calls import Agent, Call
from pointsman.pool.dispatch.dispatcher import Dispatcher, Planner
from pointsman.pool.dispatch.events import Event, State, replay

__all__ = ["Agent", "Call", "Dispatcher", "Event", "Planner", "State", "replay"]
