"""Decoding with causal language models whose tokens need not go through every layer.

LanguageExits   a `Decoder`, or a causal model of transformers, with exits after some layers
decode          each token leaves at the first exit that is sure enough of it
speculate       an early exit drafts, the full depth verifies: the full model's own text
forced          what either exit rule would say on given texts, every place at once
fit_language    training of the exits: layer dropout, losses that rise with depth
"""

from pointsman.depth.decoding.early import Keep, decode, falling
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import Forced, TokenCosts, forced, layer_runs, text_frontier
from pointsman.depth.decoding.speculative import speculate
from pointsman.depth.decoding.text import Decoded, greedy
from pointsman.depth.decoding.training import (
    exit_loss,
    fit_language,
    fit_text,
    rising_dropout,
    rising_weights,
)
from pointsman.depth.decoding.transformers import TransformersDecoder
from pointsman.depth.decoding.trunk import CausalTrunk, causal_trunk

__all__ = [
    "CausalTrunk",
    "Decoded",
    "Forced",
    "Keep",
    "LanguageExits",
    "TokenCosts",
    "TransformersDecoder",
    "causal_trunk",
    "decode",
    "exit_loss",
    "falling",
    "fit_language",
    "fit_text",
    "forced",
    "greedy",
    "layer_runs",
    "rising_dropout",
    "rising_weights",
    "speculate",
    "text_frontier",
]
