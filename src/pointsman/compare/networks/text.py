"""Small causal byte-level transformers: plain and routed feed-forwards.

Three systems route: top-k of a few experts with a balancing loss; top-k of many small ones beside a
shared one, balanced by a bias (DeepSeek-V3's way); and the same experts under ReLU routing, where a
token takes as many as score above zero. All are causal. One number says how much a routed network
spends: k, or for ReLU the share of a token's best score that an expert must reach.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe import FeedForwardExperts, MoE, Routing
from pointsman.moe.balance import AdaptiveL1, BiasedTopK, switch
from pointsman.moe.layer import Select
from pointsman.route import Route
from pointsman.select import guarantees, relu, top_k

# (width, layers) of the ladder, from small to large.
LADDER = ((32, 1), (48, 2), (64, 3), (96, 4))
NESTED_SIZE = (96, 4)
ROUTED_SIZE = (64, 3)
WIDTHS = (0.0625, 0.25, 0.5, 1.0)
EXPERTS_USED = (1, 2, 4)
FINE_EXPERTS, FINE_K = 32, 6  # with the shared one, six of them are as wide as the usual one
FINE_USED = (2, 6, 14)
RELU_SHARES = (1.0, 0.5, 0.0)
BALANCE_WEIGHT = 0.01
BIAS_RATE = 0.003
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


def dense_feed_forward(width: int, inner: int = 0) -> nn.Module:
    """The usual feed-forward, four times as wide inside unless said otherwise."""
    inner = inner or 4 * width
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


def routed_feed_forward(width: int, experts: int) -> MoE:
    """Experts of which two together are as wide as the usual feed-forward."""
    return MoE(
        nn.Linear(width, experts, bias=False),
        partial(top_k, k=2),
        FeedForwardExperts(experts, width, 2 * width),
        balance=[(BALANCE_WEIGHT, switch)],
    )


def fine_feed_forward(width: int, experts: int) -> MoE:
    """Experts an eighth as wide as the usual feed-forward, beside a shared one of a quarter.

    Balanced by a bias on the choice instead of a loss (Dai et al. 2024, "DeepSeekMoE", arXiv
    2401.06066; Wang et al. 2024, arXiv 2408.15664).
    """
    return MoE(
        nn.Linear(width, experts, bias=False),
        BiasedTopK(experts, FINE_K, rate=BIAS_RATE, renormalize=True),
        FeedForwardExperts(experts, width, width // 2),
        shared=_shared(width),
    )


def relu_feed_forward(width: int, experts: int) -> MoE:
    """The same experts, weighed by ReLU (Wang et al. 2024, "ReMoE", arXiv 2412.14711)."""
    return MoE(
        nn.Linear(width, experts, bias=False),
        relu,
        FeedForwardExperts(experts, width, width // 2),
        shared=_shared(width),
        balance=[(1.0, AdaptiveL1(FINE_K))],
    )


def _shared(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


def head(width: int) -> nn.Module:
    """What answers at an exit: (n, L, D) → logits (n, L, 256)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False))


@guarantees(batch_independent=True, causal=True)
def above_share(scores: Tensor, share: float) -> Route:
    """ReLU routing to the experts that reach this share of a token's best score."""
    best_T1 = scores.amax(dim=1, keepdim=True).clamp_min(0)
    return relu(scores.masked_fill(scores < share * best_T1, -torch.inf))


def selection(layer: MoE, knob: float | None) -> Select | None:
    """What a routed layer selects with at a knob's value; None is what it was made with."""
    if knob is None:
        return None
    if isinstance(layer.select, BiasedTopK):
        select = copy(layer.select)  # the bias is shared, k is not
        select.k = int(knob)
        return select
    if layer.select is relu:
        return partial(above_share, share=knob)
    return partial(top_k, k=int(knob))


class Block(nn.Module):
    """One transformer block with any feed-forward; gives the routing of a routed one."""

    def __init__(self, width: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm_2, self.feed_forward = nn.LayerNorm(width), feed_forward

    def forward(self, x_nLD: Tensor, k: float | None = None) -> tuple[Tensor, Routing | None]:
        """(n, L, D) → (n, L, D), and the routing where the feed-forward is routed."""
        x_nLD = x_nLD + self.attention(self.norm_1(x_nLD))
        if not isinstance(self.feed_forward, MoE):
            return x_nLD + self.feed_forward(self.norm_2(x_nLD)), None
        select = selection(self.feed_forward, k)
        routed, routing = self.feed_forward(self.norm_2(x_nLD), select=select)
        return x_nLD + routed, routing


class Transformer(nn.Module):
    """Byte-level language model: ids (n, L) → logits (n, L, 256) for the byte that follows.

    A plain one is a `pointsman.depth` trunk, so that exits can be put after its blocks, and its
    feed-forwards may have inner sizes of their own.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        context: int,
        feed_forward: str,
        experts: int = 8,
        inner: Sequence[int] = (),
    ) -> None:
        super().__init__()
        makers: dict[str, Callable[[int], nn.Module]] = {
            "dense": dense_feed_forward,
            "routed": partial(routed_feed_forward, experts=experts),
            "fine": partial(fine_feed_forward, experts=experts),
            "relu": partial(relu_feed_forward, experts=experts),
        }
        make = makers[feed_forward]
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width)
        plain = [dense_feed_forward(width, size) for size in inner]
        parts = plain or [make(width) for _ in range(layers)]
        self.blocks = nn.ModuleList(Block(width, part) for part in parts)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.1)
        self.names = tuple(f"blocks.{at}" for at in range(layers))

    def forward(
        self, ids_nL: Tensor, k: float | None = None
    ) -> Tensor | tuple[Tensor, list[Routing]]:
        """Logits; for a routed network, also the routings of its layers.

        Args:
            ids_nL: bytes.
            k: how much a routed network spends, see `selection`.
        """
        x = self.begin(ids_nL)
        routings: list[Routing] = []
        for block in self.blocks:
            x, routing = block(x, k)
            if routing is not None:
                routings.append(routing)
        logits = self.finish(x)
        return (logits, routings) if routings else logits

    def begin(self, x: Tensor) -> Tensor:
        """Bytes (n, L) → (n, L, D)."""
        x = x.long()
        embedded: Tensor = self.bytes(x) + self.positions.weight[: x.shape[1]]
        return embedded

    def block(self, at: int, state: Tensor) -> Tensor:
        """One block of a plain network, (n, L, D) → (n, L, D)."""
        result: Tensor = self.blocks[at](state)[0]
        return result

    def features(self, state: Tensor) -> Tensor:
        """The hidden states themselves."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """(n, L, D) → logits (n, L, 256)."""
        logits: Tensor = self.head(self.norm(state))
        return logits

    def after_step(self, routings: list[Routing]) -> None:
        """Move what routed layers learn outside of autograd: biases, strengths of a penalty."""
        for block, routing in zip(self.blocks, routings, strict=True):
            assert isinstance(block, Block)
            assert isinstance(block.feed_forward, MoE)
            block.feed_forward.after_step([routing])
