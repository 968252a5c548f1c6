"""Networks over graphs, and what architecture search on them needs.

Layers are ordinary modules that hold the graph they work on, so they stand in a `OneOf` like any
other operation. Published systems are choices among the parts:

- NAC: `sparse_code` on a supernet that is never trained
- AGNN: `search.engines.conservative`, and `inherit` for the weights of a new network
- LPGNAS: `searchable_formats` on a supernet, `relax.alternate` with `relax.ExpectedCost`
"""

from pointsman.supernet.graphs.coding import readout_scores, sparse_code, unit_gate
from pointsman.supernet.graphs.formats import (
    format_choice,
    format_costs,
    model_bits,
    searchable_formats,
)
from pointsman.supernet.graphs.graph import Graph
from pointsman.supernet.graphs.layers import Gather, GraphLayer
from pointsman.supernet.graphs.sharing import inherit

__all__ = [
    "Gather",
    "Graph",
    "GraphLayer",
    "format_choice",
    "format_costs",
    "inherit",
    "model_bits",
    "readout_scores",
    "searchable_formats",
    "sparse_code",
    "unit_gate",
]
