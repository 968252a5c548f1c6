"""After the answer: what it gives away, what that is worth, and when to ask another model."""

from pointsman.pool.deferral.beliefs import Beliefs
from pointsman.pool.deferral.calibration import Logistic, Monotone
from pointsman.pool.deferral.learned import LearnedDeferral
from pointsman.pool.deferral.rules import Bounds, Confidence, Gain, Rule, Window
from pointsman.pool.deferral.signals import (
    agreement,
    confidence,
    margin,
    token_log_probabilities,
    token_margins,
    verdict,
)
from pointsman.pool.deferral.windows import window_bounds

__all__ = [
    "Beliefs",
    "Bounds",
    "Confidence",
    "Gain",
    "LearnedDeferral",
    "Logistic",
    "Monotone",
    "Rule",
    "Window",
    "agreement",
    "confidence",
    "margin",
    "token_log_probabilities",
    "token_margins",
    "verdict",
    "window_bounds",
]
