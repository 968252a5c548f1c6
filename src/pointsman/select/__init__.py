"""Selections: scores (inputs, branches) to a `Route`. Pure functions, each with its guarantee."""

from pointsman.select.balanced import balanced, sinkhorn
from pointsman.select.capacity import expert_choice, with_capacity
from pointsman.select.grouped import group_limited, prototypes, within_best_group
from pointsman.select.guarantee import Guarantee, guarantee_of, guarantees
from pointsman.select.hashing import hashed
from pointsman.select.rectify import rectified
from pointsman.select.sample import categorical, gumbel
from pointsman.select.staged import (
    first_confident,
    margin,
    max_probability,
    negative_entropy,
    window,
)
from pointsman.select.threshold import relu, threshold, top_p
from pointsman.select.topk import top_k
from pointsman.select.transport import sparse_transport

__all__ = [
    "Guarantee",
    "balanced",
    "categorical",
    "expert_choice",
    "first_confident",
    "group_limited",
    "guarantee_of",
    "guarantees",
    "gumbel",
    "hashed",
    "margin",
    "max_probability",
    "negative_entropy",
    "prototypes",
    "rectified",
    "relu",
    "sinkhorn",
    "sparse_transport",
    "threshold",
    "top_k",
    "top_p",
    "window",
    "with_capacity",
    "within_best_group",
]
