"""Images written scale by scale, where later scales may run fewer layers of the same network.

After Chen et al., "Progressive Supernet Training for Efficient Visual Autoregressive Modeling"
(2025, VARiant, arXiv 2511.16546). A next-scale model writes an image as ever finer ones: the places
of scale k are predicted all at once from the scales before it. The first N scales ("bridge") run
all D layers, the later ones only a subnet of d layers at equal distances,

    I_d = { floor(i (D - 1) / (d - 1)), i = 0 … d - 1 }

whose weights are the full network's. A place keeps keys and values only at layers that it ran, and
a later scale attends, at each of its layers, to what earlier scales left there: that is why the
bridge runs them all. These sets are not nested in one another.

Where we depart: a small network over pixels of a few levels, where the paper writes tokens of an
autoencoder; scales are means of pixels rather than residuals.

Legend: n images, K scales of s x s places, D layers, W width, V levels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import DecoderBlock, feed_forward
from pointsman.errors import InputError

Layers = Sequence[Sequence[int]]  # for each of the K scales, which layers it runs, ascending


def equidistant(layers: int, depth: int) -> tuple[int, ...]:
    """The layers of a subnet: `depth` of them at equal distances, first and last among them.

    Args:
        layers: D.
        depth: d, 1 to D; 1 is the first layer alone.

    Raises:
        InputError: a depth out of range.
    """
    if not 1 <= depth <= layers:
        raise InputError(f"a subnet of {layers} layers has 1 to {layers} of them, got {depth}")
    return tuple(i * (layers - 1) // max(depth - 1, 1) for i in range(depth))


def layers_by_scale(layers: int, scales: int, *, bridge: int, depth: int) -> Layers:
    """All layers at the first `bridge` scales, a subnet of `depth` at the others.

    Raises:
        InputError: a bridge or a depth out of range.
    """
    if not 0 <= bridge <= scales:
        raise InputError(f"a bridge is 0 to {scales} scales long, got {bridge}")
    whole, some = tuple(range(layers)), equidistant(layers, depth)
    return [whole if scale < bridge else some for scale in range(scales)]


def subnet_share(
    progress: float, *, start: float = 0.25, stop: float = 0.6, least: float = 0.2
) -> float:
    """How likely a step of training runs a subnet: `least`, then rising, then always.

    The full network is learned first and the subnets at last, so that neither pays for the other
    as with a share that never changes.

    Args:
        progress: of the training, 0 to 1.
        start: where the share begins to rise.
        stop: where it has reached 1.
        least: before `start`.

    Raises:
        InputError: numbers out of order.
    """
    if not 0 <= start < stop <= 1 or not 0 <= least <= 1:
        raise InputError(
            f"a share rises from {least} between {start} and {stop}: shares lie in 0 to 1, and "
            "start before stop"
        )
    return least + (1 - least) * min(max((progress - start) / (stop - start), 0.0), 1.0)


class ScaleKeys:
    """Keys and values of the scales so far, by layer; whoever asks sees all of them.

    As `KeyValueCache` to attention, but made of new tensors at each scale, so that gradients flow.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        rows: Tensor | None = None,
    ) -> None:
        """Add the (n, H, q, d) of one scale at one layer."""
        if layer in self._held:
            before = self._held[layer]
            keys, values = (
                torch.cat([a, b], dim=2) for a, b in zip(before, (keys, values), strict=True)
            )
        self._held[layer] = keys, values

    def attend(
        self, layer: int, queries: Tensor, positions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """(n, H, q, d) over all that is held at a layer."""
        return functional.scaled_dot_product_attention(queries, *self._held[layer])

    def entries(self) -> int:
        """How many (layer, image, place) triples are held."""
        return sum(keys.shape[0] * keys.shape[2] for keys, _ in self._held.values())


class NextScale(nn.Module):
    """Classes and coarser scales → logits of the next scale, through layers that can be left out.

    Args:
        sizes: s of each of the K scales, rising, each a multiple of the one before.
        levels: V values of a place.
        classes: of images.
        width: W.
        layers: D.
        heads: of attention.

    Raises:
        InputError: sizes that do not fit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        levels: int,
        classes: int,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        steps = pairwise(sizes)
        if not sizes or sizes[0] < 1 or any(b <= a or b % a for a, b in steps):
            raise InputError(f"scales rise, each a multiple of the one before, got {list(sizes)}")
        self.sizes, self.levels = tuple(sizes), levels
        self.level, self.label = nn.Embedding(levels + 1, width), nn.Embedding(classes, width)
        self.places = nn.ParameterList(nn.Parameter(torch.zeros(s * s, width)) for s in sizes)
        for weight in (self.level.weight, self.label.weight, *self.places):
            nn.init.normal_(weight, std=0.1)
        self.blocks = nn.ModuleList(
            DecoderBlock(width, heads, feed_forward(width)) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, levels, bias=False)

    @property
    def whole(self) -> Layers:
        """All layers at every scale."""
        return [range(len(self.blocks))] * len(self.sizes)

    def forward(
        self, scales: Sequence[Tensor], labels: Tensor, layers: Layers | None = None
    ) -> list[Tensor]:
        """Logits (n, s * s, V) of every scale, each given the true ones before it.

        Args:
            scales: K of (n, s * s) levels, see `pyramid`.
            labels: (n,) classes.
            layers: which layers each scale runs; None: all.

        Raises:
            InputError: scales or layers that do not fit.
        """
        self._check(layers)
        keys, before = ScaleKeys(), [None, *scales[:-1]]
        return [
            self.scale(at, seen, labels, keys, layers)
            for at, seen in zip(range(len(self.sizes)), before, strict=True)
        ]

    def scale(
        self,
        at: int,
        before: Tensor | None,
        labels: Tensor,
        keys: ScaleKeys,
        layers: Layers | None = None,
    ) -> Tensor:
        """Logits (n, s * s, V) of one scale; keys are extended by it.

        Args:
            at: which scale, from 0, in order.
            before: (n, t * t) levels of the one before; None at the first.
            labels: (n,).
            keys: what earlier scales left.
            layers: as for `forward`.
        """
        size = self.sizes[at]
        if before is None:
            levels = torch.full((len(labels), size * size), self.levels, device=labels.device)
        else:
            levels = _grown(before, self.sizes[at - 1], size)
        x = self.level(levels) + self.label(labels)[:, None] + self.places[at]
        positions = torch.full(x.shape[:2], at, device=x.device)
        for layer in (layers or self.whole)[at]:
            # attention asks a cache for `extend` and `attend` alone
            x = self.blocks[layer](x, positions, cast(KeyValueCache, keys), layer)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def sample(
        self, labels: Tensor, layers: Layers | None = None, *, seed: int = 0
    ) -> tuple[Tensor, int]:
        """Images written from nothing.

        Args:
            labels: (n,) what to write.
            layers: as for `forward`.
            seed: of the draws.

        Returns:
            (n, s, s) levels of the last scale, and how many keys were held for it, in entries.
        """
        self._check(layers)
        generator = torch.Generator(labels.device).manual_seed(seed)
        keys, found = ScaleKeys(), None
        for at in range(len(self.sizes)):
            chances = self.scale(at, found, labels, keys, layers).softmax(dim=-1)
            drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator)
            found = drawn.reshape(chances.shape[:2])
        assert found is not None
        return found.reshape(-1, self.sizes[-1], self.sizes[-1]), keys.entries()

    def _check(self, layers: Layers | None) -> None:
        depth, given = len(self.blocks), self.whole if layers is None else layers
        fits = all(
            len(some) > 0 and list(some) == sorted(set(some)) and some[0] >= 0 and some[-1] < depth
            for some in given
        )
        if len(given) != len(self.sizes) or not fits:
            raise InputError(
                f"each of {len(self.sizes)} scales runs some of the layers 0 to {depth - 1}, "
                f"ascending, got {[list(some) for some in given]}"
            )


def pyramid(images: Tensor, sizes: Sequence[int], levels: int) -> list[Tensor]:
    """An image as ever finer ones: means of pixels, rounded to levels.

    Args:
        images: (n, s, s) from 0 to V - 1, s the last size.
        sizes: of the K scales.
        levels: V.

    Returns:
        K of (n, s * s) int64.
    """
    x = images[:, None].float()
    means = [functional.adaptive_avg_pool2d(x, size).flatten(1) for size in sizes]
    return [mean.round().clamp(0, levels - 1).long() for mean in means]


def nats(logits: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """(K,) negative log likelihood of each scale, summed over its places, mean over images."""
    found = [
        functional.cross_entropy(a.flatten(0, 1), b.flatten(), reduction="sum") / len(b)
        for a, b in zip(logits, scales, strict=True)
    ]
    return torch.stack(found)


def _grown(levels: Tensor, size: int, to: int) -> Tensor:
    """(n, size * size) → (n, to * to), each place repeated."""
    times = to // size
    image = levels.reshape(-1, size, size)
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2).flatten(1)
