"""Skip, run or repeat each block of a residual network: paths, routers, search, and the oracle.

    network = SkipNetwork(trunk, WindowRouters(len(trunk.names), width))
    labels, found = TreeSearch().search(trunk, x, y).best(least=1.0)     # offline, with the answers
    fit_routers(network, x[found], labels[found])
    answer = network.run(x, price=0.5)                                   # output, runs, route

`skip_gap` says how far the routers are from the best paths, and from chance at the same cost.
"""

from pointsman.depth.layers.duo import (
    DuoDecoder,
    DuoRouters,
    SizedFeedForward,
    fit_duo_routers,
    mixed_loss,
    random_choices,
)
from pointsman.depth.layers.duo_patterns import (
    all_patterns,
    difficulty,
    oracle_choices,
    pattern_losses,
)
from pointsman.depth.layers.execute import (
    FixedRuns,
    LayerAnswer,
    LayerCosts,
    LayerPolicy,
    layer_costs,
    run_layers,
    run_paths,
    skippable,
)
from pointsman.depth.layers.gap import SkipGap, oracle_frontier, skip_gap
from pointsman.depth.layers.network import (
    PRICES,
    PricedRouters,
    SkipNetwork,
    correct,
    likelihood,
    outcomes_of_runs,
)
from pointsman.depth.layers.paths import (
    LayerPath,
    enumerate_paths,
    exchanged_runs,
    random_runs,
    shuffled_runs,
    whole_path,
)
from pointsman.depth.layers.perceptron import ResidualPerceptron
from pointsman.depth.layers.routers import (
    FirstStateRouters,
    LayerRouters,
    WindowRouters,
    choose_runs,
)
from pointsman.depth.layers.search import TreeSearch, Tried, every_path
from pointsman.depth.layers.training import fit_routers, pooled_states, rising, skipping_logits
from pointsman.depth.layers.writing import write_on_paths

__all__ = [
    "PRICES",
    "DuoDecoder",
    "DuoRouters",
    "FirstStateRouters",
    "FixedRuns",
    "LayerAnswer",
    "LayerCosts",
    "LayerPath",
    "LayerPolicy",
    "LayerRouters",
    "PricedRouters",
    "ResidualPerceptron",
    "SizedFeedForward",
    "SkipGap",
    "SkipNetwork",
    "TreeSearch",
    "Tried",
    "WindowRouters",
    "all_patterns",
    "choose_runs",
    "correct",
    "difficulty",
    "enumerate_paths",
    "every_path",
    "exchanged_runs",
    "fit_duo_routers",
    "fit_routers",
    "layer_costs",
    "likelihood",
    "mixed_loss",
    "oracle_choices",
    "oracle_frontier",
    "outcomes_of_runs",
    "pattern_losses",
    "pooled_states",
    "random_choices",
    "random_runs",
    "rising",
    "run_layers",
    "run_paths",
    "shuffled_runs",
    "skip_gap",
    "skippable",
    "skipping_logits",
    "whole_path",
    "write_on_paths",
]
