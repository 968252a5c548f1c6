"""Quality against cost: points, frontiers, what can be promised, and how far from the best."""

from pointsman.frontier.baselines import oracle, random_mixing
from pointsman.frontier.bounds import METHODS, Method, inputs_needed, p_value, upper_bound
from pointsman.frontier.certify import (
    Certificate,
    Pick,
    certify,
    fixed_sequence,
    safest_first,
    standard_error,
)
from pointsman.frontier.metrics import aiq, apgr, cpt, deferral_area, deferral_curve, pgr
from pointsman.frontier.points import Frontier, Knob, Outcomes, Point

__all__ = [
    "METHODS",
    "Certificate",
    "Frontier",
    "Knob",
    "Method",
    "Outcomes",
    "Pick",
    "Point",
    "aiq",
    "apgr",
    "certify",
    "cpt",
    "deferral_area",
    "deferral_curve",
    "fixed_sequence",
    "inputs_needed",
    "oracle",
    "p_value",
    "pgr",
    "random_mixing",
    "safest_first",
    "standard_error",
    "upper_bound",
]
