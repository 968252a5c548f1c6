"""Mixture-of-Recursions: one shared stack of layers, a depth per token.

After Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation" (2025, arXiv 2507.10524). The middle blocks of a decoder are one stack f that a token
goes through up to R times between the first blocks and the last ones ("Middle-Cycle"),

    x ← x + g · (f(x) - x)        for the tokens that the router lets in, g its weight
    x ← x                         for all others, from then on

In recursion r a token attends to the tokens that take recursion r too, under their own positions,
and a cache holds keys and values of these alone (recursion-wise caching). With `share_keys` tokens
of later recursions attend to the keys and values that all tokens left at the first, and store none.

Where we depart: the paper adds g · f(x) to x, where f has residuals of its own; we weigh the change
f(x) - x, so that g = 1 is exactly the plain recursive transformer.

Legend: n sequences, m of them run now, S tokens of each, D width, V vocabulary, R recursions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import CausalAttention, Decoder, DecoderBlock, rotate
from pointsman.depth.recursion.packing import packed, packed_without_fill
from pointsman.depth.recursion.routers import DepthRouter
from pointsman.errors import InputError
from pointsman.route import Route


@dataclass(frozen=True, eq=False)
class Recursed:
    """What came out, and how deep each token went.

    Attributes:
        logits: (m, S, V).
        route: of m * S tokens, sequence after sequence, over R recursions, with the gates' weights.
        loss: scalar, what the router adds to the training loss.
    """

    logits: Tensor
    route: Route
    loss: Tensor

    @property
    def depths(self) -> Tensor:
        """(m, S) int64: recursions that each token took."""
        return self.route.branches_per_input().reshape(self.logits.shape[:2])


class MixtureOfRecursions(nn.Module):
    """A decoder whose middle blocks are run as often as each token needs.

    Args:
        decoder: whose blocks are used, not copied: also a trained one.
        shared: the blocks of the stack, a range of neighbours such as `range(1, 3)`.
        router: who takes which recursion; it says how many there are.
        share_keys: attend to the keys and values of the first recursion in all of them.

    Raises:
        InputError: a stack that is empty, not neighbours or out of range; shared keys, or no block
            before the stack, with a router that leaves tokens out of the first recursion.
    """

    def __init__(
        self, decoder: Decoder, shared: range, router: DepthRouter, *, share_keys: bool = False
    ) -> None:
        super().__init__()
        layers = len(decoder.blocks)
        if not shared or shared.step != 1 or shared.start < 0 or shared.stop > layers:
            raise InputError(
                f"the shared stack is a range of neighbouring blocks from 0 to {layers}, "
                f"got {shared}"
            )
        if not isinstance(router, nn.Module) or not isinstance(router, DepthRouter):
            raise InputError(f"a router of depths chooses tokens, got {type(router).__name__}")
        if share_keys and not router.everyone_first:
            raise InputError(
                "keys are shared from the first recursion, which every token must take: let the "
                "first capacity be 1"
            )
        if shared.start == 0 and not router.everyone_first:
            raise InputError(
                "some layer must hold every token, or positions are lost: leave a block before the "
                "stack, or let the first capacity be 1"
            )
        self.decoder, self.shared, self.router = decoder, shared, router
        self.recursions, self.share_keys = router.recursions, share_keys
        self.context = decoder.context

    def forward(self, ids: Tensor) -> Recursed:
        """Logits of all tokens at once, without a cache.

        Args:
            ids: (n, S).

        Raises:
            InputError: more tokens than the context.
        """
        # shared keys are read again in later recursions, so something has to hold them
        kept = KeyValueCache(self._layers, len(ids), self.context) if self.share_keys else None
        x = self.decoder.begin(ids)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        return self._run(x, positions, kept, None)

    def extend(self, ids: Tensor, cache: KeyValueCache, rows: Tensor | None = None) -> Recursed:
        """Logits of the next tokens of sequences whose earlier ones are in the cache.

        Gives what `forward` gives for these tokens in evaluation mode. Any number of tokens may be
        given at once: a prompt, then one by one.

        Args:
            ids: (m, S).
            cache: of `cache(n)`; it grows by these tokens.
            rows: (m,) which sequences of the cache; None: all.

        Raises:
            InputError: training mode, a cache of another model, or a full one.
        """
        if self.training:
            raise InputError(
                "while training, routers may look at later tokens, which a cache cannot know: "
                "call eval() first"
            )
        if cache.layers != self._layers:
            raise InputError(
                f"this model needs a cache of {self._layers} layers, got {cache.layers}: "
                "make one with .cache(rows)"
            )
        counts = cache.counts[0] if rows is None else cache.counts[0, rows.cpu()]
        start = counts.to(ids.device)[:, None]
        positions = start + torch.arange(ids.shape[1], device=ids.device)
        return self._run(self.decoder.begin(ids), positions, cache, rows)

    def cache(self, rows: int) -> KeyValueCache:
        """An empty cache for so many sequences."""
        return KeyValueCache(self._layers, rows, self.context)

    @property
    def _layers(self) -> int:
        """Layers of the cache: each recursion has its own, unless keys are shared."""
        times = 1 if self.share_keys else self.recursions
        return len(self.decoder.blocks) + (times - 1) * len(self.shared)

    def _run(
        self, x: Tensor, positions: Tensor, cache: KeyValueCache | None, rows: Tensor | None
    ) -> Recursed:
        first, stop = self.shared.start, self.shared.stop
        cut = self._layers - (len(self.decoder.blocks) - stop)  # the cache's layers before the last
        x = self._blocks(range(first), 0, x, positions, cache, rows)
        x, route, loss = self._recur(x, positions, cache, rows)
        last = range(stop, len(self.decoder.blocks))
        x = self._blocks(last, cut, x, positions, cache, rows)
        return Recursed(self.decoder.finish(x), route, loss)

    def _recur(
        self, x: Tensor, positions: Tensor, cache: KeyValueCache | None, rows: Tensor | None
    ) -> tuple[Tensor, Route, Tensor]:
        alive = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        taken, weights, loss, memory = [], [], x.new_zeros(()), None
        for recursion in range(self.recursions):
            chosen = self.router.choose(recursion, x, alive, memory)
            alive, memory, loss = chosen.active, chosen.memory, loss + chosen.loss
            if not bool(alive.any()):
                break
            taken.append(alive.flatten())
            weights.append(chosen.weights.flatten())
            x = self._once(recursion, x, chosen.weights, alive, positions, cache, rows)
        return x, self._route(taken, weights, x), loss

    def _once(
        self,
        recursion: int,
        x: Tensor,
        weights: Tensor,
        alive: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None,
        rows: Tensor | None,
    ) -> Tensor:
        """One recursion of the tokens that are alive, the others as they were."""
        run = partial(self._stack, recursion, cache=cache)
        if bool(alive.all()):
            return x + weights[..., None] * (run(x, positions, rows=rows) - x)
        # fill is harmless unless it is stored
        stores = cache is not None and not (self.share_keys and recursion)
        for pack in packed_without_fill(alive) if stores else [packed(alive)]:
            tokens, whole = pack.take(x), len(pack.rows) == len(x)
            own = rows if whole else (pack.rows if rows is None else rows[pack.rows])
            change = run(tokens, pack.take(positions), rows=own) - tokens
            x = pack.put(x, tokens + pack.take(weights)[..., None] * change)
        return x

    def _stack(
        self,
        recursion: int,
        x: Tensor,
        positions: Tensor,
        *,
        cache: KeyValueCache | None,
        rows: Tensor | None,
    ) -> Tensor:
        """The shared stack on some tokens, (m, k, D) → (m, k, D)."""
        first = self.shared.start
        if not self.share_keys or not recursion:
            layer = first + recursion * len(self.shared)
            return self._blocks(self.shared, layer, x, positions, cache, rows)
        assert cache is not None
        for layer in self.shared:
            block = self.decoder.blocks[layer]
            assert isinstance(block, DecoderBlock)
            x = attend_only(block, x, positions, cache, layer, rows)
        return x

    def _blocks(
        self,
        blocks: Sequence[int],
        layer: int,
        x: Tensor,
        positions: Tensor,
        cache: KeyValueCache | None,
        rows: Tensor | None,
    ) -> Tensor:
        for at, block in enumerate(blocks):
            x = self.decoder.blocks[block](x, positions, cache, layer + at, rows)
        return x

    def _route(self, taken: list[Tensor], weights: list[Tensor], x: Tensor) -> Route:
        tokens = x.shape[0] * x.shape[1]
        none = self.recursions - len(taken)
        mask = torch.stack([*taken, *[x.new_zeros(tokens, dtype=torch.bool)] * none], dim=1)
        gates = torch.stack([*weights, *[x.new_zeros(tokens)] * none], dim=1)
        return Route.from_dense(gates, mask)


def attend_only(
    block: DecoderBlock,
    x: Tensor,
    positions: Tensor,
    cache: KeyValueCache,
    layer: int,
    rows: Tensor | None = None,
) -> Tensor:
    """A block whose tokens attend to what the cache holds, and store nothing.

    No keys and values are computed, which saves two of the four projections of attention.

    Args:
        block: of a decoder.
        x: (m, S, D).
        positions: (m, S).
        cache: that holds keys and values at the layer.
        layer: of the cache.
        rows: (m,) of the cache; None: all.
    """
    attention = block.attention
    assert isinstance(attention, CausalAttention)
    query = functional.linear(block.norm_1(x), attention.mix.weight[: x.shape[-1]])
    split = query.reshape(*x.shape[:2], attention.heads, -1).transpose(1, 2)
    mixed = cache.attend(layer, rotate(split, positions), positions, rows)
    x = x + attention.out(mixed.transpose(1, 2).flatten(2))
    result: Tensor = x + block.feed_forward(block.norm_2(x))
    return result


@torch.no_grad()
def generate(model: MixtureOfRecursions, ids: Tensor, new_tokens: int) -> tuple[Tensor, Tensor]:
    """Greedy continuation, token by token over a cache, each as deep as the router says.

    Args:
        model: in evaluation mode.
        ids: (n, S) prompts, S at least 1.
        new_tokens: how many.

    Returns:
        Tokens (n, S + new_tokens); and depths (n, S + new_tokens - 1): the last token is not run.

    Raises:
        InputError: an empty prompt, training mode, or more tokens than the context.
    """
    if ids.ndim != 2 or not ids.shape[1] or new_tokens < 0:
        raise InputError(
            f"prompts are (sequences, at least 1 token), got {tuple(ids.shape)} and "
            f"{new_tokens} new tokens"
        )
    cache, found, depths, piece = model.cache(len(ids)), [ids], [], ids
    for _ in range(new_tokens):
        run = model.extend(piece, cache)
        depths.append(run.depths)
        piece = run.logits[:, -1:].argmax(dim=-1)
        found.append(piece)
    none = ids.new_zeros(len(ids), 0)
    return torch.cat(found, dim=1), torch.cat(depths, dim=1) if depths else none
