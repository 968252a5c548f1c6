"""Learning while serving: bandits, pacing, estimates from logs, alarms.

A bandit chooses an arm with a probability that it tells (`Choice`), so that what was served can be
looked back on: `inverse_propensity`, `self_normalized` and `doubly_robust` say what another policy
would have reached, `replay` does so for a saved policy. `Pacer` spends a budget evenly,
`DriftAlarm` watches whether a promise still holds, `ShiftWarning` is its weaker sister without
feedback. Everything is numpy alone and can be kept (`to_state`, `from_state`).
"""

from pointsman.pool.online.alarm import DriftAlarm
from pointsman.pool.online.automaton import RewardInaction
from pointsman.pool.online.bandit import Bandit, Choice
from pointsman.pool.online.detection import ChangeDetection, LikelihoodRatio, PageHinkley
from pointsman.pool.online.discounted import DiscountedThompson, DiscountedUpperConfidence
from pointsman.pool.online.estimates import (
    Checks,
    Estimate,
    doubly_robust,
    effective_rows,
    inverse_propensity,
    self_normalized,
    weights,
)
from pointsman.pool.online.explore_then_commit import explore_then_commit, greedy
from pointsman.pool.online.inverse_gap import ChebyshevInverseGap
from pointsman.pool.online.knapsack import Knapsack
from pointsman.pool.online.linear import LinearThompson, LinearUpperConfidence
from pointsman.pool.online.pacing import Pacer
from pointsman.pool.online.replaying import Replay, replay
from pointsman.pool.online.served import read_jsonl
from pointsman.pool.online.shift import ShiftWarning
from pointsman.pool.online.sliding import SlidingWindowUpperConfidence
from pointsman.pool.online.tsallis import TsallisInf
from pointsman.pool.online.wealth import Wealth

__all__ = [
    "Bandit",
    "ChangeDetection",
    "ChebyshevInverseGap",
    "Checks",
    "Choice",
    "DiscountedThompson",
    "DiscountedUpperConfidence",
    "DriftAlarm",
    "Estimate",
    "Knapsack",
    "LikelihoodRatio",
    "LinearThompson",
    "LinearUpperConfidence",
    "Pacer",
    "PageHinkley",
    "Replay",
    "RewardInaction",
    "ShiftWarning",
    "SlidingWindowUpperConfidence",
    "TsallisInf",
    "Wealth",
    "doubly_robust",
    "effective_rows",
    "explore_then_commit",
    "greedy",
    "inverse_propensity",
    "read_jsonl",
    "replay",
    "self_normalized",
    "weights",
]
