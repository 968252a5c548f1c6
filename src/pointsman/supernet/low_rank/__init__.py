"""Low rank: weights kept as products of thin factors, found by truncation or trained as such."""

from pointsman.supernet.low_rank.integrator import DynamicalLowRank
from pointsman.supernet.low_rank.layers import LowRank, make_low_rank, rank_within

__all__ = ["DynamicalLowRank", "LowRank", "make_low_rank", "rank_within"]
