"""Cascades of models as probabilistic programs over texts: draw, condition, vote, learn."""

from pointsman.pool.programs.answers import same_answer
from pointsman.pool.programs.forms import chain_of_thought, selection_inference
from pointsman.pool.programs.inference import (
    ancestral,
    consensus,
    effective_size,
    enumerated,
    marginal,
    probabilities,
    rejection,
)
from pointsman.pool.programs.program import Call, Conditional, Distribution, Run, Table, Trace
from pointsman.pool.programs.star import SelfTaughtReasoner

__all__ = [
    "Call",
    "Conditional",
    "Distribution",
    "Run",
    "SelfTaughtReasoner",
    "Table",
    "Trace",
    "ancestral",
    "chain_of_thought",
    "consensus",
    "effective_size",
    "enumerated",
    "marginal",
    "probabilities",
    "rejection",
    "same_answer",
    "selection_inference",
]
