"""Routers: features of tokens, and what else is known of them, to scores."""

from pointsman.moe.routers.attention import AttentionRouter
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.combined import ProductRouter, SummedRouter, TwoLevelRouter
from pointsman.moe.routers.cosine import CosineRouter
from pointsman.moe.routers.hash import HashRouter
from pointsman.moe.routers.hyper import HyperRouter
from pointsman.moe.routers.kan import KANLayer, KANRouter
from pointsman.moe.routers.kmeans import KMeansRouter
from pointsman.moe.routers.linear import LinearRouter
from pointsman.moe.routers.masked import MaskedRouter, frequency_mask
from pointsman.moe.routers.noisy import NoisyRouter
from pointsman.moe.routers.recurrent import RecurrentRouter
from pointsman.moe.routers.smoothed import SmoothedRouter
from pointsman.moe.routers.tasks import ConditionalRouter, TaskRouter

__all__ = [
    "AttentionRouter",
    "ConditionalRouter",
    "CosineRouter",
    "HashRouter",
    "HyperRouter",
    "KANLayer",
    "KANRouter",
    "KMeansRouter",
    "LinearRouter",
    "MaskedRouter",
    "NoisyRouter",
    "ProductRouter",
    "RecurrentRouter",
    "Router",
    "Scored",
    "SmoothedRouter",
    "SummedRouter",
    "TaskRouter",
    "TwoLevelRouter",
    "frequency_mask",
]
