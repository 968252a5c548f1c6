"""Queries as numbers: encoders from text to vectors."""

from pointsman.pool.features.features import Encoder, Features
from pointsman.pool.features.text import TextEncoder

__all__ = ["Encoder", "Features", "TextEncoder"]
