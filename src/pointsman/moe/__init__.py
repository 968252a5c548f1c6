"""Token level: which expert a token goes to."""

from pointsman.moe.context import Context
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE, Routing

__all__ = ["Context", "FeedForwardExperts", "MoE", "Routing"]
