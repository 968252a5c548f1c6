"""Which channels, hidden units and heads of a network live and die together, and cutting them."""

from pointsman.supernet.channels.groups import ChannelGroup, Slice, channel_groups
from pointsman.supernet.channels.narrowing import narrow, reorder, zeroed

__all__ = ["ChannelGroup", "Slice", "channel_groups", "narrow", "reorder", "zeroed"]
