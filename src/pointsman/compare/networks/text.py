"""Small causal byte-level transformers: plain, nested and routed feed-forwards."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import switch
from pointsman.select import top_k
from pointsman.supernet import PrefixLinear

# (width, layers) of the ladder, from small to large.
LADDER = ((32, 1), (48, 2), (64, 3), (96, 4))
NESTED_SIZE = (96, 4)
ROUTED_SIZE = (64, 3)
WIDTHS = (0.0625, 0.25, 0.5, 1.0)
EXPERTS_USED = (1, 2, 4)
BYTES = 256
HEAD_WIDTH = 16

# Shape letters: n windows, L positions, D width.


class Attention(nn.Module):
    """Causal self-attention over (n, L, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_nLD: Tensor) -> Tensor:
        """(n, L, D) → (n, L, D); position l sees positions up to l."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.mix(x_nLD).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


def dense_feed_forward(width: int) -> nn.Module:
    """The usual feed-forward, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def nested_feed_forward(width: int) -> nn.Module:
    """A feed-forward whose inner width is elastic (MatFormer: Devvrit 2023, arXiv 2310.07707)."""
    up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    return nn.Sequential(
        PrefixLinear(up, elastic_in=False), nn.GELU(), PrefixLinear(down, elastic_out=False)
    )


def routed_feed_forward(width: int, experts: int) -> MoE:
    """Experts of which two together are as wide as the usual feed-forward."""
    return MoE(
        nn.Linear(width, experts, bias=False),
        partial(top_k, k=2),
        FeedForwardExperts(experts, width, 2 * width),
    )


class Block(nn.Module):
    """One transformer block with any feed-forward; gives the balancing loss of a routed one."""

    def __init__(self, width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm_2, self.feed_forward = nn.LayerNorm(width), feed_forward

    def forward(self, x_nLD: Tensor, k: int | None = None) -> tuple[Tensor, Tensor | None]:
        """(n, L, D) → (n, L, D), and the balancing loss where the feed-forward is routed."""
        x_nLD = x_nLD + self.attention(self.norm_1(x_nLD))
        if not isinstance(self.feed_forward, MoE):
            return x_nLD + self.feed_forward(self.norm_2(x_nLD)), None
        select = None if k is None else partial(top_k, k=k)
        routed, routing = self.feed_forward(self.norm_2(x_nLD), select=select)
        return x_nLD + routed, switch(routing)


class Transformer(nn.Module):
    """Byte-level language model: ids (n, L) → logits (n, L, 256) for the byte that follows."""

    def __init__(self, width: int, layers: int, context: int, feed_forward: str, experts: int = 8):
        super().__init__()
        makers: dict[str, Callable[[int], nn.Module]] = {
            "dense": dense_feed_forward,
            "nested": nested_feed_forward,
            "routed": partial(routed_feed_forward, experts=experts),
        }
        make = makers[feed_forward]
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, make(width)) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, ids_nL: Tensor, k: int | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; for a routed network, also the balancing losses summed over layers."""
        ids_nL = ids_nL.long()
        x = self.bytes(ids_nL) + self.positions.weight[: ids_nL.shape[1]]
        balances = []
        for block in self.blocks:
            x, balance = block(x, k)
            balances.append(balance)
        logits: Tensor = self.head(self.norm(x))
        routed = [balance for balance in balances if balance is not None]
        return (logits, torch.stack(routed).sum()) if routed else logits
