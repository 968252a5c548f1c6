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


class Rotary:
    """Rotary embedding, which keeps the turns of the last positions for the layers that follow.

    One token's step through a small decoder would otherwise spend as long on cosines as on
    attention. All layers of a network share one.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys (m, H, S, d), turned by their positions (m, S) or (1, S)."""
        half = x.shape[-1] // 2
        cos, sin = self._turns(positions, half, x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def _turns(self, positions: Tensor, half: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (m, 1, S, half)."""
        # what a tracer or inference mode made may not turn up in another kind of run, and only
        # a version tells that positions were not changed in place
        plain = type(positions) is Tensor and not torch.compiler.is_compiling()
        plain = plain and not (positions.is_inference() or torch.is_inference_mode_enabled())
        key = (half, dtype, positions._version if plain else 0)
        if plain and self._last is not None:
            of, last_key, turns = self._last
            if of is positions and last_key == key:
                return turns
        speeds = BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
        angles = positions[:, None, :, None].to(torch.float32) * speeds
        turns = angles.cos().to(dtype), angles.sin().to(dtype)
        if plain and type(turns[0]) is Tensor:
            self._last = positions, key, turns
        return turns


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of queries or keys (m, H, S, d) at positions (m, S), nothing kept."""
    return Rotary()(x, positions)


class CausalAttention(nn.Module):
    """Causal self-attention over (m, S, D), over a cache where one is given."""

    def __init__(self, width: int, heads: int, rotary: Rotary | None = None) -> None:
        super().__init__()
        if heads < 1 or width % heads or (width // heads) % 2:
            raise InputError(
                f"heads divide the width into even parts, got width {width}, {heads} heads"
            )
        self.heads, self.rotary = heads, rotary or Rotary()
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
        parts = self.mix(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        turned, value = parts.split((2 * self.heads, self.heads), dim=1)
        query, key = self.rotary(turned, positions).chunk(2, dim=1)
        if cache is None:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            cache.extend(layer, key, value, positions, rows)
            mixed = cache.attend(layer, query, positions, rows)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def store(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KeyValueCache,
        layer: int = 0,
        rows: Tensor | None = None,
    ) -> None:
        """Put keys and values of x (m, S, D) into a cache and do nothing else."""
        weight = self.mix.weight[x.shape[-1] :]  # queries come first
        parts = functional.linear(x, weight).view(*x.shape[:2], 2 * self.heads, -1)
        key, value = parts.transpose(1, 2).chunk(2, dim=1)
        cache.extend(layer, self.rotary(key, positions), value, positions, rows)


def feed_forward(width: int) -> nn.Module:
    """The usual one, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, width: int, heads: int, inner: nn.Module, rotary: Rotary | None = None
    ) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), CausalAttention(width, heads, rotary)
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
        rotary = Rotary()
        blocks = [DecoderBlock(width, heads, make(width), rotary) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.names = tuple(f"blocks.{at}" for at in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        """(n, S) → (n, S, V)."""
        state = self.begin(ids)
        for at in range(len(self.blocks)):
            state = self.block(at, state)
        return self.finish(state)

    def begin(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids (n, S) → (n, S, D); positions come in only with attention.

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
            rows_, tokens = state.shape[:2]
            positions = torch.arange(tokens, device=state.device).expand(rows_, tokens)
        result: Tensor = self.blocks[at](state, positions, cache, at, rows)
        return result

    def store(
        self,
        at: int,
        state: Tensor,
        positions: Tensor,
        cache: KeyValueCache,
        rows: Tensor | None = None,
    ) -> None:
        """Only keys and values of a block, from the state (m, S, D) before it; it does not run."""
        block = self.blocks[at]
        assert isinstance(block, DecoderBlock)
        block.attention.store(block.norm_1(state), positions, cache, at, rows)

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
