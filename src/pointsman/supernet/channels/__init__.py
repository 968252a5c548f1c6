"""Which channels, hidden units and heads of a network live and die together, and cutting them."""

from pointsman.supernet.channels.groups import ChannelGroup, Slice, channel_groups
from pointsman.supernet.channels.narrowing import narrow, reorder, zeroed
from pointsman.supernet.channels.tracing import call_with

__all__ = ["ChannelGroup", "Slice", "call_with", "channel_groups", "narrow", "reorder", "zeroed"]
