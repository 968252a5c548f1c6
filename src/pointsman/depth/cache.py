"""Keys and values of a decoder whose layers have not all seen the same tokens.

In an ordinary cache every layer holds every token. Where tokens leave early, skip layers or recurse
to a depth of their own, layers hold different tokens, and rows of a batch different numbers of
them. So each entry has its position, and attention reads what a row has stored at a layer, up to
the position that asks: a token that did not run a layer is simply not there, and nothing stale or
foreign ever is.

Layers that hold a row's tokens from 0 on without a gap (`plain`) store no positions, and what all
layers of one step need (which places are written, what may be seen) is worked out once for each
tensor of positions: a step of one token through a small decoder is mostly such bookkeeping.

Legend: n rows (sequences), m of them written now, L layers, H heads, q tokens written now, S
entries, d width of a head.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.errors import InputError

FIRST_ROOM = 64


@dataclass(eq=False)
class _Layer:
    """What one layer holds."""

    counts: Tensor  # (n,); not kept up while `even` is a number
    even: int | None = 0  # entries of every row, where all have as many
    plain: bool = True  # entry p has position p
    keys: Tensor | None = None  # (n, H, room, d)
    values: Tensor | None = None
    positions: Tensor | None = None  # (n, room); None while plain

    def held(self) -> Tensor:
        """(n,) entries of each row."""
        if self.even is not None:
            self.counts.fill_(self.even)
        return self.counts

    def hold(self, counts: Tensor) -> None:
        self.counts = counts
        first = int(counts[0]) if len(counts) else 0
        self.even = first if bool((counts == first).all()) else None


@dataclass(eq=False)
class _Step:
    """Tokens that layers store or ask for, and what follows from their positions alone."""

    positions: Tensor  # (m, q) as given
    given_rows: Tensor | None
    version: tuple[int, int]
    rows: Tensor | None  # None: all, in order
    chosen: Tensor  # (m,) on the CPU
    real: Tensor | None  # (m, q) bool, which are tokens; None: all
    asks: Tensor  # (m, q) positions, 0 instead of -1
    lengths: Tensor  # (m,) tokens of each row, on the CPU
    starts: Tensor  # (m,) first position of each row, on the CPU
    first: int | None  # the position at which every row starts, if it is one and none has a gap
    gapless: bool
    low: int  # lowest and highest position
    top: int
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, longest: int) -> Tensor:
        """(m, 1, q, S) bool: entries of a plain layer up to the position that asks."""
        if longest not in self.masks:
            entries = torch.arange(longest, device=self.asks.device)
            self.masks[longest] = (entries <= self.asks[:, :, None])[:, None]
        return self.masks[longest]


def _step(positions: Tensor, given_rows: Tensor | None, rows_held: int) -> _Step:
    if positions.shape == (1, 1) and rows_held == 1:
        return _one(positions, given_rows)
    m, q = positions.shape
    rows = given_rows
    chosen = torch.arange(rows_held) if rows is None else rows.cpu()
    if rows is not None and m == rows_held and bool((chosen == torch.arange(m)).all()):
        rows = None
    low, top = (int(bound) for bound in positions.aminmax()) if positions.numel() else (0, -1)
    real = positions >= 0 if low < 0 else None
    asks = positions if real is None else positions.clamp(min=0)
    lengths = torch.full((m,), q) if real is None else real.sum(dim=1).cpu()
    beyond = asks if real is None else positions.masked_fill(~real, top + 1)
    starts = beyond.amin(dim=1).cpu() if q else torch.zeros(m, dtype=torch.int64)
    ahead = torch.arange(q) if real is None else real.cpu().cumsum(dim=1) - 1
    runs = (positions.cpu() == starts[:, None] + ahead) | (positions.cpu() < 0)
    gapless = bool(runs.all())
    uniform = gapless and real is None and low + q - 1 == top
    return _Step(
        positions=positions,
        given_rows=given_rows,
        version=_versions(positions, given_rows),
        rows=rows,
        chosen=chosen,
        real=real,
        asks=asks,
        lengths=lengths,
        starts=starts,
        first=low if uniform else None,
        gapless=gapless,
        low=low,
        top=top,
    )


def _one(positions: Tensor, given_rows: Tensor | None) -> _Step:
    """One token of the only row, which is what decoding mostly asks for."""
    place = int(positions)
    real, none = place >= 0, torch.zeros(1, dtype=torch.int64)
    return _Step(
        positions=positions,
        given_rows=given_rows,
        version=_versions(positions, given_rows),
        rows=None,
        chosen=none,
        real=None if real else positions >= 0,
        asks=positions.clamp(min=0),
        lengths=none + int(real),
        starts=none + max(place, 0),
        first=place if real else None,
        gapless=True,
        low=place,
        top=place,
    )


def _versions(positions: Tensor, rows: Tensor | None) -> tuple[int, int]:
    """Change when the tensors are changed in place; -1 where that cannot be told."""
    return (
        -1 if positions.is_inference() else positions._version,
        0 if rows is None else -1 if rows.is_inference() else rows._version,
    )


@dataclass(frozen=True, eq=False)
class Slots:
    """Where tokens are to be stored at a layer, see `KeyValueCache.claim`."""

    layer: int
    start: int | None  # of every row; None: as given by row and place
    tokens: int
    rows: Tensor  # (N,) of each token
    places: Tensor  # (N,)
    real: Tensor | None  # (m, q) bool, which tokens there are; None: all


class KeyValueCache:
    """Keys and values by layer and row, each with its position.

    Args:
        layers: L.
        rows: n.
        context: the most positions that the model can tell apart; also the most entries of a row at
            a layer.
    """

    def __init__(self, layers: int, rows: int, context: int) -> None:
        if layers < 1 or rows < 0 or context < 1:
            raise InputError(
                "a cache needs at least one layer and one position, and rows from 0, got "
                f"{layers} layers, {rows} rows, {context} positions"
            )
        self.layers, self.rows, self.context = layers, rows, context
        self._layers = [_Layer(torch.zeros(rows, dtype=torch.int64)) for _ in range(layers)]
        self._last: _Step | None = None

    @property
    def counts(self) -> Tensor:
        """(L, n) int64, how many entries each layer holds for each row; a copy."""
        return torch.stack([layer.held() for layer in self._layers])

    def extend(
        self,
        layer: int,
        keys: Tensor,
        values: Tensor,
        positions: Tensor,
        rows: Tensor | None = None,
    ) -> None:
        """Store tokens at one layer.

        Args:
            layer: from 0.
            keys: (m, H, q, d).
            values: (m, H, q, d).
            positions: (m, q) int64; in each row after those that it holds, ascending. -1: no token,
                so that rows may have different numbers of them.
            rows: (m,) which rows these are, each once; None: all n, in order.

        Raises:
            InputError: more than `context` positions, or shapes that do not fit.
        """
        if positions.shape != (keys.shape[0], keys.shape[2]):
            raise InputError(
                f"a cache stores keys (rows, heads, tokens, width) with one position for each "
                f"token, got keys {tuple(keys.shape)}, positions {tuple(positions.shape)}"
            )
        self.write(self.claim(layer, positions, rows), keys, values)

    def claim(self, layer: int, positions: Tensor, rows: Tensor | None = None) -> Slots:
        """Make tokens known to a layer before their keys and values are there.

        For layers that are told what they may see before they compute keys, as those of
        `transformers` are: `claim`, `visible`, then `write` what the layer found and `read`.

        Args:
            layer: from 0.
            positions: as for `extend`.
            rows: as for `extend`.

        Returns:
            What `write` needs.

        Raises:
            InputError: as for `extend`.
        """
        step, store = self._at(positions, rows), self._layers[layer]
        m, q = positions.shape
        if m * q:
            self._refuse_beyond(step.top + 1)
        even = store.even if step.rows is None and step.real is None else None
        if even is not None and store.plain and step.first == even:
            store.even = even + q
            none = step.chosen[:0]
            return Slots(layer, even, q, none, none, None)
        held = store.held()
        start_m = held[step.chosen]
        if store.plain and not (step.gapless and bool((start_m == step.starts).all())):
            self._spell_out(store, step)
        ahead = torch.arange(q) if step.real is None else step.real.cpu().cumsum(dim=1) - 1
        places = start_m[:, None] + ahead  # (m, q)
        counts = held.clone()
        counts[step.chosen] += step.lengths
        self._refuse_beyond(int(counts.max()) if len(counts) else 0)
        real = torch.ones(m, q, dtype=torch.bool) if step.real is None else step.real.cpu()
        row_N, place_N = step.chosen[:, None].expand(m, q)[real], places[real]
        device = positions.device
        row_N, place_N = row_N.to(device), place_N.to(device)
        if not store.plain:
            assert store.positions is not None
            store.positions = _roomy(store.positions, int(counts.max()), self.context, dim=1)
            store.positions[row_N, place_N] = positions[real.to(device)]
        store.hold(counts)
        return Slots(layer, None, q, row_N, place_N, step.real)

    def write(self, slots: Slots, keys: Tensor, values: Tensor) -> None:
        """Keys and values (m, H, q, d) of claimed tokens."""
        store = self._layers[slots.layer]
        m, heads, q, width = keys.shape
        if q != slots.tokens or (slots.start is not None and m != self.rows):
            raise InputError(
                f"{slots.tokens} tokens of a row were to be stored at layer {slots.layer} in a "
                f"cache of {self.rows} rows, got keys {tuple(keys.shape)}"
            )
        if not m * q:
            return
        if store.keys is None or store.values is None:
            store.keys = keys.new_zeros(self.rows, heads, 0, width)
            store.values = values.new_zeros(self.rows, heads, 0, values.shape[-1])
        most = store.even if store.even is not None else int(store.counts.max())
        k = store.keys = _roomy(store.keys, most, self.context, dim=2)
        v = store.values = _roomy(store.values, most, self.context, dim=2)
        if slots.start is not None:
            k[:, :, slots.start : slots.start + q] = keys
            v[:, :, slots.start : slots.start + q] = values
            return
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        chosen = (slice(None), slice(None)) if slots.real is None else (slots.real,)
        k[slots.rows, :, slots.places] = keys[chosen].reshape(-1, heads, width)
        v[slots.rows, :, slots.places] = values[chosen].reshape(-1, heads, values.shape[-1])

    def read(self, layer: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (m, H, S, d) of rows, S the most entries that one of them has."""
        store = self._layers[layer]
        if store.keys is None or store.values is None:
            raise InputError(f"nothing is stored at layer {layer} yet: extend before you attend")
        if rows is None:
            longest = _longest(store, None)
            return store.keys[:, :, :longest], store.values[:, :, :longest]
        longest = _longest(store, rows.cpu())
        return store.keys[rows, :, :longest], store.values[rows, :, :longest]

    def visible(self, layer: int, positions: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """Which of the entries that `read` gives each token may see, up to its own position.

        Args:
            layer: from 0.
            positions: (m, q) of the tokens that ask; -1 asks for nothing and sees something.
            rows: (m,) which rows ask; None: all n.

        Returns:
            (m, 1, q, S) bool; None where each sees all.
        """
        step, store = self._at(positions, rows), self._layers[layer]
        if store.even is not None:
            longest = least = store.even
        else:
            counts = store.counts[step.chosen]
            least, longest = (int(bound) for bound in counts.aminmax()) if len(counts) else (0, 0)
        if store.plain and least == longest and step.low >= longest - 1:
            return None
        if store.plain and (step.top < least or _within(step, store)):
            return step.mask(longest)
        held = torch.arange(longest, device=positions.device)
        counts = store.held()[step.chosen].to(positions.device)
        here = held < counts[:, None]
        if store.plain:
            at = held.expand(len(counts), longest)
        else:
            assert store.positions is not None
            at = store.positions[step.chosen.to(positions.device), :longest]
        seen = here[:, None] & (at[:, None] <= step.asks[:, :, None])
        if step.real is not None:  # nobody reads what fills a row, but NaN would spread from it
            seen |= ~step.real[:, :, None] & (held == 0)
        return seen[:, None]

    def attend(
        self, layer: int, queries: Tensor, positions: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Attention over what is stored at a layer, each query up to its own position.

        Args:
            layer: from 0.
            queries: (m, H, q, d).
            positions: (m, q).
            rows: (m,) which rows ask; None: all n.

        Returns:
            (m, H, q, d).
        """
        k, v = self.read(layer, self._at(positions, rows).rows)
        seen = self.visible(layer, positions, rows)
        return functional.scaled_dot_product_attention(queries, k, v, attn_mask=seen)

    def forget_from(self, position: int | Tensor) -> None:
        """Drop what lies at a position or after it, at every layer: rejected drafts.

        Args:
            position: one for all rows, or (n,).
        """
        one = position if isinstance(position, int) else None
        bound = torch.as_tensor(position).cpu().expand(self.rows)
        for store in self._layers:
            if store.plain and store.even is not None and one is not None:
                store.even = min(store.even, max(one, 0))
            elif store.plain:
                store.hold(torch.minimum(store.held(), bound.clamp(min=0)))
            elif store.positions is not None:
                room = torch.arange(store.positions.shape[1])
                held = room < store.held()[:, None]
                store.hold((held & (store.positions.cpu() < bound[:, None])).sum(dim=1))

    def entries(self) -> int:
        """How many (layer, row, token) triples are stored: what the memory is paid for."""
        return int(self.counts.sum())

    def _at(self, positions: Tensor, rows: Tensor | None) -> _Step:
        last = self._last
        if (
            last is not None
            and last.positions is positions
            and last.given_rows is rows
            and last.version == _versions(positions, rows)
            and -1 not in last.version
        ):
            return last
        if positions.ndim != 2 or len(positions) != (self.rows if rows is None else len(rows)):
            raise InputError(
                f"positions are (rows, tokens), for all {self.rows} rows of the cache or for those "
                f"named, got {tuple(positions.shape)} for {'all' if rows is None else len(rows)}"
            )
        self._last = _step(positions, rows, self.rows)
        return self._last

    def _refuse_beyond(self, positions: int) -> None:
        if positions > self.context:
            raise InputError(
                f"the model tells {self.context} positions apart, the cache was to hold "
                f"{positions}: shorten the text, or start again from its end"
            )

    def _spell_out(self, store: _Layer, step: _Step) -> None:
        """From now on the layer stores its positions: there are gaps."""
        room = max(FIRST_ROOM, int(store.held().max()) if self.rows else 0)
        device = step.positions.device
        store.positions = torch.arange(room, device=device).repeat(self.rows, 1)
        store.plain = False


def _longest(store: _Layer, chosen: Tensor | None) -> int:
    if store.even is not None:
        return store.even
    counts = store.counts if chosen is None else store.counts[chosen]
    return int(counts.max()) if len(counts) else 0


def _within(step: _Step, store: _Layer) -> bool:
    """Whether every row holds what its last token may see."""
    last = step.asks.amax(dim=1).cpu() if step.asks.numel() else torch.zeros(len(step.asks))
    return bool((last < store.held()[step.chosen]).all())


def _roomy(stored: Tensor, entries: int, context: int, dim: int) -> Tensor:
    """The same with room for so many entries, doubling."""
    have = stored.shape[dim]
    if have >= entries:
        return stored
    shape = list(stored.shape)
    shape[dim] = min(context, max(FIRST_ROOM, 2 * entries))
    grown = stored.new_zeros(shape)
    grown.narrow(dim, 0, have).copy_(stored)
    return grown
