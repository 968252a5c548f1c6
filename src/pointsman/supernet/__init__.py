"""Architecture level: train once, serve every budget."""

from pointsman.supernet.making import make_elastic
from pointsman.supernet.nested import (
    Nested,
    PrefixBatchNorm2d,
    PrefixConv2d,
    PrefixLayerNorm,
    PrefixLinear,
)

__all__ = [
    "Nested",
    "PrefixBatchNorm2d",
    "PrefixConv2d",
    "PrefixLayerNorm",
    "PrefixLinear",
    "make_elastic",
]
