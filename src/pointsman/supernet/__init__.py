"""Architecture level: train once, serve every budget."""

from pointsman.supernet.nested import (
    Nested,
    PrefixBatchNorm2d,
    PrefixConv2d,
    PrefixLayerNorm,
    PrefixLinear,
    make_elastic,
)

__all__ = [
    "Nested",
    "PrefixBatchNorm2d",
    "PrefixConv2d",
    "PrefixLayerNorm",
    "PrefixLinear",
    "make_elastic",
]
