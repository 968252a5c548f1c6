"""Structured pruning of one's own network."""

from pointsman.supernet.pruning.blocks import BlockPruning, prune_by_blocks
from pointsman.supernet.pruning.game import PruningGame, participation
from pointsman.supernet.pruning.gates import gated_parameters, run_gated
from pointsman.supernet.pruning.hesso import Fading, mixed_saliency, trial_saliency
from pointsman.supernet.pruning.importance import (
    Criterion,
    activation,
    at_random,
    batch_norm_scale,
    magnitude,
    taylor,
    unit_sums,
)
from pointsman.supernet.pruning.prune import (
    Measure,
    Pruned,
    PruningReport,
    latency,
    macs,
    parameters,
    prune,
)
from pointsman.supernet.pruning.transport import TransportPruning, transport_mask

__all__ = [
    "BlockPruning",
    "Criterion",
    "Fading",
    "Measure",
    "Pruned",
    "PruningGame",
    "PruningReport",
    "TransportPruning",
    "activation",
    "at_random",
    "batch_norm_scale",
    "gated_parameters",
    "latency",
    "macs",
    "magnitude",
    "mixed_saliency",
    "parameters",
    "participation",
    "prune",
    "prune_by_blocks",
    "run_gated",
    "taylor",
    "transport_mask",
    "trial_saliency",
    "unit_sums",
]
