"""Queries as numbers: encoders from text to vectors."""

from pointsman.pool.features.endpoint import EndpointEncoder
from pointsman.pool.features.features import Encoder, Features
from pointsman.pool.features.folder import FolderEncoder
from pointsman.pool.features.text import TextEncoder
from pointsman.pool.features.vectors import VectorEncoder

__all__ = [
    "Encoder",
    "EndpointEncoder",
    "Features",
    "FolderEncoder",
    "TextEncoder",
    "VectorEncoder",
]
