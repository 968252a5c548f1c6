"""Experts on many devices: exchange, placement, plans."""

from pointsman.moe.parallel.cluster import Cluster
from pointsman.moe.parallel.exchange import (
    ParallelExperts,
    gather_state,
    gradient_norm,
    reduce_replicated_gradients,
    shard,
)
from pointsman.moe.parallel.hierarchy import Traffic, flat_traffic, two_level_traffic
from pointsman.moe.parallel.memory import (
    Memory,
    PathPredictor,
    Served,
    allot,
    fetched_ahead,
    fit_predictor,
    on_demand,
    regroup,
    touched,
)
from pointsman.moe.parallel.paths import (
    Paths,
    PathTraining,
    nearest_shard,
    reshard,
    shard_centres,
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
from pointsman.moe.parallel.placement import (
    chained,
    contiguous,
    crossing,
    flows,
    greedy,
    imbalance,
    improved,
    seconds,
    shuffled,
    travel,
)
from pointsman.moe.parallel.plan import Line, PlanBook, fit_line
from pointsman.moe.parallel.programs import even_clusters, exflow, exflow_exact, moetuner
from pointsman.moe.parallel.tensor_expert import TensorExpertData, Wire, routed_layer
from pointsman.moe.parallel.tiled import TiledAdam
from pointsman.moe.parallel.trace import MarkovTraces, Trace

__all__ = [
    "Cluster",
    "LayerCosts",
    "Line",
    "MarkovTraces",
    "Memory",
    "Overlap",
    "ParallelExperts",
    "PathPredictor",
    "PathTraining",
    "Paths",
    "PlanBook",
    "Served",
    "TensorExpertData",
    "TiledAdam",
    "Timeline",
    "Trace",
    "Traffic",
    "Wire",
    "allot",
    "chained",
    "choose_degree",
    "contiguous",
    "crossing",
    "even_clusters",
    "exflow",
    "exflow_exact",
    "fetched_ahead",
    "fit_line",
    "fit_predictor",
    "flat_traffic",
    "flows",
    "gather_state",
    "gradient_norm",
    "greedy",
    "imbalance",
    "improved",
    "moetuner",
    "nearest_shard",
    "on_demand",
    "place_gradients",
    "predict",
    "reduce_replicated_gradients",
    "regroup",
    "reshard",
    "routed_layer",
    "seconds",
    "shard",
    "shard_centres",
    "shuffled",
    "simulate",
    "touched",
    "travel",
    "two_level_traffic",
]
