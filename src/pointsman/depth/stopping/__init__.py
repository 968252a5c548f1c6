"""When an input may leave: confidences of logits, and rules that remember what exits said before.

Each can be given as `confidence` wherever stages run (`run_staged`, `EarlyExit.run`, `frontier`,
`certified_exits`), and for each the knob is one threshold, higher is safer:

    max_probability    probability of the likeliest class                     in [0, 1]
    margin             likeliest minus second                                 in [0, 1]
    negative_entropy   minus the entropy of the probabilities                 at most 0
    Calibrated         any of these at one fitted temperature per exit        as that one
    Patience           exits in a row that gave the same class                0, 1, 2, ...
    LearnedGate        chance to leave here, trained with the heads           in [0, 1]
    OverPlaces         any confidence over the places of an input             as that one
    Window             distance from an accept-or-reject decision             in [0, 1]
"""

from pointsman.depth.stopping.calibrated import Calibrated
from pointsman.depth.stopping.gate import LearnedGate, exit_shares, gate_features
from pointsman.depth.stopping.keeping import rule_back, rule_state
from pointsman.depth.stopping.patience import Patience
from pointsman.depth.stopping.places import OverPlaces
from pointsman.depth.stopping.window import Window
from pointsman.select import margin, max_probability, negative_entropy

__all__ = [
    "Calibrated",
    "LearnedGate",
    "OverPlaces",
    "Patience",
    "Window",
    "exit_shares",
    "gate_features",
    "margin",
    "max_probability",
    "negative_entropy",
    "rule_back",
    "rule_state",
]
