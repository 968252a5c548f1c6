"""Scores that need no training, how well they rank networks, and their combination.

A score is a function of a network at initialisation, a batch of inputs and their labels.
`score_networks` adds the number of parameters and FLOPs to whatever is asked for, and
`ScoreTable.agreement` reports the rank correlation of each with the truth.
"""

from pointsman.supernet.scores.agreement import Agreement, partial_agreement, rank_agreement
from pointsman.supernet.scores.combination import combined_scores
from pointsman.supernet.scores.gradients import grad_norm, gradsign, jacob_cov, snip, synflow
from pointsman.supernet.scores.outputs import epsinas, flops, naswot, parameters
from pointsman.supernet.scores.table import TRIVIAL, ZERO_COST, Score, ScoreTable, score_networks

__all__ = [
    "TRIVIAL",
    "ZERO_COST",
    "Agreement",
    "Score",
    "ScoreTable",
    "combined_scores",
    "epsinas",
    "flops",
    "grad_norm",
    "gradsign",
    "jacob_cov",
    "naswot",
    "parameters",
    "partial_agreement",
    "rank_agreement",
    "score_networks",
    "snip",
    "synflow",
]
