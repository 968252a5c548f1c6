"""Token level: which expert a token goes to."""

from pointsman.moe.balance import switch_balance
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE, Routing

__all__ = ["FeedForwardExperts", "MoE", "Routing", "switch_balance"]
