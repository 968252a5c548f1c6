"""Banks of experts: rows sorted by expert and offsets to rows, many small networks run as one."""

from pointsman.moe.experts.feed_forward import FeedForwardExperts

__all__ = ["FeedForwardExperts"]
