"""Depth level: how deep into one network an input goes, and by which way.

Exits are here; what else depends on the depth has a folder of its own: `stopping` (rules), `trunks`
(any network as a row of blocks), `layers` (skip, run, repeat), `decoding`, `recursion`, `paths`,
`splitting`, `diagnostics`; and files: `ranking` (cascades of rankers), `graphs` and `graph_routing`
(search through similarity graphs), `scales` (depth by scale), `networks` (images).
"""

from pointsman.depth.allowed import allowed_loss
from pointsman.depth.budget import certified_exits, searched_frontier
from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import Decoder
from pointsman.depth.early_exit import EarlyExit, joint_loss
from pointsman.depth.exit_policy import ExitPolicy
from pointsman.depth.export import ExportedExits, export_exits, load_exits
from pointsman.depth.fitting import Batches, Recipe
from pointsman.depth.gating import jei_dnn
from pointsman.depth.heads import LanguageHead, convolution_head, hidden_head, pooled_linear
from pointsman.depth.measuring import Savings
from pointsman.depth.placing import by_cost
from pointsman.depth.recursion import MixtureOfRecursions
from pointsman.depth.scales import NextScale
from pointsman.depth.splitting import measure_cuts
from pointsman.depth.thresholds import exit_settings
from pointsman.depth.training import (
    ExitLoss,
    train_back_to_front,
    train_front_to_back,
    train_heads,
    train_jointly,
)
from pointsman.depth.trunks import (
    SequentialTrunk,
    TracedTrunk,
    TransformerTrunk,
    Trunk,
    layers_of,
    trunk_of,
)

__all__ = [
    "Batches",
    "Decoder",
    "EarlyExit",
    "ExitLoss",
    "ExitPolicy",
    "ExportedExits",
    "KeyValueCache",
    "LanguageHead",
    "MixtureOfRecursions",
    "NextScale",
    "Recipe",
    "Savings",
    "SequentialTrunk",
    "TracedTrunk",
    "TransformerTrunk",
    "Trunk",
    "allowed_loss",
    "by_cost",
    "certified_exits",
    "convolution_head",
    "exit_settings",
    "export_exits",
    "hidden_head",
    "jei_dnn",
    "joint_loss",
    "layers_of",
    "load_exits",
    "measure_cuts",
    "pooled_linear",
    "searched_frontier",
    "train_back_to_front",
    "train_front_to_back",
    "train_heads",
    "train_jointly",
    "trunk_of",
]
