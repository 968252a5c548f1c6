"""Selections: scores (inputs, branches) to a `Route`. Pure functions, each with its guarantee."""

from pointsman.select.balanced import balanced, sinkhorn
from pointsman.select.capacity import expert_choice, with_capacity
from pointsman.select.guarantee import Guarantee, guarantee_of, guarantees
from pointsman.select.hashing import hashed
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

__all__ = [
    "Guarantee",
    "balanced",
    "categorical",
    "expert_choice",
    "first_confident",
    "guarantee_of",
    "guarantees",
    "gumbel",
    "hashed",
    "margin",
    "max_probability",
    "negative_entropy",
    "relu",
    "sinkhorn",
    "threshold",
    "top_k",
    "top_p",
    "window",
    "with_capacity",
]
