"""What keeps experts equally used, coupled, sparse or near: losses that are returned, per layer.

A term is called with the `Routing` of one layer and the layer. What learns beside the losses
(`BiasedTopK`, `AdaptiveL1`) changes in `after_step` alone.
"""

from pointsman.moe.balance.by_mode import ByMode
from pointsman.moe.balance.coupling import ExpertRouterCoupling, dominance
from pointsman.moe.balance.dirichlet import DirichletPrior
from pointsman.moe.balance.locality import chunk_sparsity, locality
from pointsman.moe.balance.logits import entropy, router_z
from pointsman.moe.balance.loss_free import BiasedTopK
from pointsman.moe.balance.losses import grouped_switch, sequence_switch, switch
from pointsman.moe.balance.sparsity import AdaptiveL1, NormedWeights
from pointsman.moe.balance.variation import chances, importance, load

__all__ = [
    "AdaptiveL1",
    "BiasedTopK",
    "ByMode",
    "DirichletPrior",
    "ExpertRouterCoupling",
    "NormedWeights",
    "chances",
    "chunk_sparsity",
    "dominance",
    "entropy",
    "grouped_switch",
    "importance",
    "load",
    "locality",
    "router_z",
    "sequence_switch",
    "switch",
]
