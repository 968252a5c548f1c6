"""Token level: which expert a token goes to."""

from pointsman.moe.context import Context
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE, Routing
from pointsman.moe.probe import Leaks, check_guarantee, leaks
from pointsman.moe.soft import Slots, SoftMoE
from pointsman.moe.telemetry import LayerReport, Telemetry, agreement, watch

__all__ = [
    "Context",
    "FeedForwardExperts",
    "LayerReport",
    "Leaks",
    "MoE",
    "Routing",
    "Slots",
    "SoftMoE",
    "Telemetry",
    "agreement",
    "check_guarantee",
    "leaks",
    "watch",
]
