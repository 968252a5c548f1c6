"""Experts on many devices: exchange, placement, plans."""

from pointsman.moe.parallel.exchange import (
    ParallelExperts,
    gather_state,
    gradient_norm,
    reduce_replicated_gradients,
    shard,
)
from pointsman.moe.parallel.pipeline import (
    LayerCosts,
    Overlap,
    Timeline,
    choose_degree,
    place_gradients,
    predict,
    simulate,
)
from pointsman.moe.parallel.plan import Line, PlanBook, fit_line
from pointsman.moe.parallel.tensor_expert import TensorExpertData, Wire, routed_layer
from pointsman.moe.parallel.tiled import TiledAdam

__all__ = [
    "LayerCosts",
    "Line",
    "Overlap",
    "ParallelExperts",
    "PlanBook",
    "TensorExpertData",
    "TiledAdam",
    "Timeline",
    "Wire",
    "choose_degree",
    "fit_line",
    "gather_state",
    "gradient_norm",
    "place_gradients",
    "predict",
    "reduce_replicated_gradients",
    "routed_layer",
    "shard",
    "simulate",
]
