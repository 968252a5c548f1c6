"""A small causal transformer that can be run layer by layer, with or without a cache.

Pre-norm blocks with rotary positions (Su et al. 2021, arXiv 2104.09864): a token's position is its
own, however many tokens were left out before it, so layers may skip tokens. The plain decoder of
this level: for language models trained here, and for the tests of what also runs on
`transformers`' models.

Legend: n sequences, m of them run now, S tokens of each, D width, H heads, d = D / H, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.cache import KeyValueCache
from pointsman.errors import InputError

BASE = 10_000.0


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of queries or keys (m, H, S, d) at positions (m, S)."""
    half = x.shape[-1] // 2
    speeds = BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].to(torch.float32) * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class CausalAttention(nn.Module):
    """Causal self-attention over (m, S, D), over a cache where one is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads or (width // heads) % 2:
            raise InputError(
                f"heads divide the width into even parts, got width {width}, {heads} heads"
            )
        self.heads = heads
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(m, S, D) → (m, S, D).

        Args:
            x: tokens; without a cache a token sees those before it in x and itself.
            positions: (m, S) int64, ascending in each row.
            cache: to extend by these tokens and to attend over.
            layer: of the cache.
            rows: (m,) of the cache; None: all.
        """
        parts = self.mix(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        query, key, value = rotate(parts[0], positions), rotate(parts[1], positions), parts[2]
        if cache is None:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            cache.extend(layer, key, value, positions, rows)
            mixed = cache.attend(layer, query, positions, rows)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


def feed_forward(width: int) -> nn.Module:
    """The usual one, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads)
        self.norm_2, self.feed_forward = nn.LayerNorm(width), inner

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(m, S, D) → (m, S, D); arguments as for `CausalAttention`."""
        x = x + self.attention(self.norm_1(x), positions, cache, layer, rows)
        result: Tensor = x + self.feed_forward(self.norm_2(x))
        return result


class Decoder(nn.Module):
    """Token ids (n, S) → logits (n, S, V) for the token that follows; a `Trunk` of its layers.

    Args:
        vocabulary: V.
        width: D.
        layers: blocks.
        heads: H; D / H must be even.
        context: the most positions.
        inner: (width) → a feed-forward from (n, S, D) to the same shape. None: the usual one.

    Raises:
        InputError: sizes that do not fit.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        inner: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if min(vocabulary, width, layers, context) < 1:
            raise InputError(
                "vocabulary, width, layers and context are at least 1, got "
                f"{vocabulary}, {width}, {layers}, {context}"
            )
        make = inner or feed_forward
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, make(width)) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.names = tuple(f"blocks.{at}" for at in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        """(n, S) → (n, S, V)."""
        state = self.begin(ids)
        for at in range(len(self.blocks)):
            state = self.block(at, state)
        return self.finish(state)

    def begin(self, x: Tensor) -> Tensor:
        """Ids (n, S) → (n, S, D).

        Raises:
            InputError: more tokens than the context.
        """
        if x.ndim != 2 or x.shape[1] > self.context:
            raise InputError(
                f"token ids are (sequences, up to {self.context} tokens), got {tuple(x.shape)}"
            )
        embedded: Tensor = self.embedding(x.long())
        return embedded

    def block(
        self,
        at: int,
        state: Tensor,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One block; positions (m, S) default to 0 to S - 1."""
        if positions is None:
            positions = torch.arange(state.shape[1], device=state.device).expand(state.shape[:2])
        result: Tensor = self.blocks[at](state, positions, cache, at, rows)
        return result

    def features(self, state: Tensor) -> Tensor:
        """The hidden states themselves, (n, S, D)."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """(n, S, D) → logits (n, S, V)."""
        logits: Tensor = self.head(self.norm(state))
        return logits

    def cache(self, rows: int) -> KeyValueCache:
        """An empty cache for so many sequences."""
        return KeyValueCache(len(self.blocks), rows, self.context)
