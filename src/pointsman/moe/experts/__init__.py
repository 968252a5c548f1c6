"""Banks of experts: rows sorted by expert and offsets to rows, many small networks run as one."""

from pointsman.moe.experts.convolution import ConvolutionExperts
from pointsman.moe.experts.feed_forward import FeedForwardExperts
from pointsman.moe.experts.linear import LinearExperts
from pointsman.moe.experts.lora import LoRAExperts, freeze
from pointsman.moe.experts.mixed import Identity, MixedExperts, Zero

__all__ = [
    "ConvolutionExperts",
    "FeedForwardExperts",
    "Identity",
    "LinearExperts",
    "LoRAExperts",
    "MixedExperts",
    "Zero",
    "freeze",
]
