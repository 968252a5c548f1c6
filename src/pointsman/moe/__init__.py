"""Token level: which expert a token goes to."""

from pointsman.moe.competition import CompetingRouter, CompetitionSchedule
from pointsman.moe.context import Context
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE, Routing
from pointsman.moe.merging import SoftMerging
from pointsman.moe.probe import Leaks, check_guarantee, leaks
from pointsman.moe.soft import Slots, SoftMoE
from pointsman.moe.telemetry import LayerReport, Telemetry, agreement, watch

__all__ = [
    "CompetingRouter",
    "CompetitionSchedule",
    "Context",
    "FeedForwardExperts",
    "LayerReport",
    "Leaks",
    "MoE",
    "Routing",
    "Slots",
    "SoftMerging",
    "SoftMoE",
    "Telemetry",
    "agreement",
    "check_guarantee",
    "leaks",
    "watch",
]
