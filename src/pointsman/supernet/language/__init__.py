"""Pruning and elastic fine-tuning of language models: own ones and those of `transformers`."""

from pointsman.supernet.language.calling import call, logits_of, next_token_losses
from pointsman.supernet.language.dropping import SublayerDropping
from pointsman.supernet.language.perturbation import PerturbationPruning, weighted_inputs
from pointsman.supernet.language.skipping import SkipSublayers, tidy
from pointsman.supernet.language.sublayers import Nothing, Sublayer, find_sublayers
from pointsman.supernet.language.subnets import layers_and_widths

__all__ = [
    "Nothing",
    "PerturbationPruning",
    "SkipSublayers",
    "Sublayer",
    "SublayerDropping",
    "call",
    "find_sublayers",
    "layers_and_widths",
    "logits_of",
    "next_token_losses",
    "tidy",
    "weighted_inputs",
]
