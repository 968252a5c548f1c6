"""Continuous relaxations of architecture search: options mixed by weights that are learned.

A `Relaxation` holds the parameters of a supernet's choices and edges, a gate turns them into
mixtures, `alternate` or `two_copies` trains them with the weights, and `derive` or
`select_by_perturbation` decides. Published systems are choices among these parts:

- DARTS: `Relaxation(supernet, never=["none"])` and `alternate`; second order: `gradient=unrolled()`
- PC-DARTS: `PartialChannels`, `edge_gate=softmax_gate`, `warm_up`
- RC-DARTS: `ExpectedCost`, and `Projection` as `after`
- RARTS: `two_copies`
- ROME: `gate=GumbelGate(), edge_gate=GumbelGate()`, `draws`, `derive(disentangled=True)`
- DARTS-PT: `select_by_perturbation`
- ProxylessNAS: `gate=two_path_gate, weights_gate=GumbelGate()`, `keep_unsampled`, `penalty`
- TangleNAS: any of the gates on elastic widths and kernels, whose slices are mixed
"""

from pointsman.supernet.relax.alternate import (
    ArchitectureGradient,
    alternate,
    architecture_gradients,
    first_order,
    unrolled,
)
from pointsman.supernet.relax.binary import keep_unsampled
from pointsman.supernet.relax.expected import ExpectedCost, Projection, operation_costs, project
from pointsman.supernet.relax.flow import StateGraph, edge_flow, edges_within
from pointsman.supernet.relax.gates import (
    Draw,
    Gate,
    GumbelGate,
    dirichlet_gate,
    softmax_gate,
    two_path_gate,
)
from pointsman.supernet.relax.partial import PartialChannels
from pointsman.supernet.relax.perturbation import select_by_perturbation
from pointsman.supernet.relax.relaxation import Node, Relaxation, release
from pointsman.supernet.relax.thresholds import Thresholds, expected_cost
from pointsman.supernet.relax.two_copies import two_copies, two_copies_step
from pointsman.supernet.relax.two_widths import (
    AnyInput,
    Chain,
    InterpolatedDepth,
    InterpolatedWidth,
    PairGate,
    budget_loss,
    interpolate_channels,
)

__all__ = [
    "AnyInput",
    "ArchitectureGradient",
    "Chain",
    "Draw",
    "ExpectedCost",
    "Gate",
    "GumbelGate",
    "InterpolatedDepth",
    "InterpolatedWidth",
    "Node",
    "PairGate",
    "PartialChannels",
    "Projection",
    "Relaxation",
    "StateGraph",
    "Thresholds",
    "alternate",
    "architecture_gradients",
    "budget_loss",
    "dirichlet_gate",
    "edge_flow",
    "edges_within",
    "expected_cost",
    "first_order",
    "interpolate_channels",
    "keep_unsampled",
    "operation_costs",
    "project",
    "release",
    "select_by_perturbation",
    "softmax_gate",
    "two_copies",
    "two_copies_step",
    "two_path_gate",
    "unrolled",
]
