"""Pruning and elastic fine-tuning of language models: own ones and those of `transformers`."""

from pointsman.supernet.language.dropping import SublayerDropping
from pointsman.supernet.language.skipping import SkipSublayers, tidy
from pointsman.supernet.language.sublayers import Nothing, Sublayer, find_sublayers

__all__ = [
    "Nothing",
    "SkipSublayers",
    "Sublayer",
    "SublayerDropping",
    "find_sublayers",
    "tidy",
]
