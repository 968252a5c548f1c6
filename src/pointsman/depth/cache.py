"""Keys and values of a decoder whose layers have not all seen the same tokens.

In an ordinary cache every layer holds every token. Where tokens leave early, skip layers or recurse
to a depth of their own, layers hold different tokens, and rows of a batch different numbers of
them. So each entry carries its position, and attention reads what a row has stored at a layer, up
to the position that asks: a token that did not run a layer is simply not there, and nothing stale
or foreign ever is.

Legend: n rows (sequences), m of them written now, L layers, H heads, q tokens written now, S
entries, d width of a head.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.errors import InputError

FIRST_ROOM = 64


class KeyValueCache:
    """Keys and values by layer and row, each with its position.

    Args:
        layers: L.
        rows: n.
        context: the most positions that the model can tell apart; also the most entries of a row at
            a layer.

    Attributes:
        counts: (L, n) int64, how many entries each layer holds for each row.
    """

    def __init__(self, layers: int, rows: int, context: int) -> None:
        if layers < 1 or rows < 0 or context < 1:
            raise InputError(
                "a cache needs at least one layer and one position, and rows from 0, got "
                f"{layers} layers, {rows} rows, {context} positions"
            )
        self.layers, self.rows, self.context = layers, rows, context
        self.counts = torch.zeros(layers, rows, dtype=torch.int64)
        # the number that all rows of a layer share; None where they differ
        self._even: list[int | None] = [0] * layers
        self._keys: list[Tensor | None] = [None] * layers  # (n, H, room, d)
        self._values: list[Tensor | None] = [None] * layers
        self._positions: list[Tensor | None] = [None] * layers  # (n, room)

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
            positions: (m, q) int64; in each row after those that it holds, ascending.
            rows: (m,) which rows these are; None: all n, in order.

        Raises:
            InputError: more than `context` positions, or shapes that do not fit.
        """
        m, _, q, _ = keys.shape
        if positions.shape != (m, q) or (rows is None and m != self.rows):
            raise InputError(
                f"a cache of {self.rows} rows stores keys (rows, heads, tokens, width) with one "
                f"position each, got keys {tuple(keys.shape)}, positions {tuple(positions.shape)}"
            )
        if not q or not m:
            return
        even = self._even[layer]
        start = even if even is not None and rows is None else None
        most = start if start is not None else int(self.counts[layer].max())
        self._refuse_beyond(most + q if start is not None else 0, positions)
        self._room(layer, most + q, keys)
        k, v, p = self._stored(layer)
        if start is not None:
            k[:, :, start : start + q] = keys
            v[:, :, start : start + q] = values
            p[:, start : start + q] = positions
            self.counts[layer] += q
            self._even[layer] = start + q
            return
        chosen = torch.arange(self.rows) if rows is None else rows.cpu()
        places = self.counts[layer, chosen][:, None] + torch.arange(q)  # (m, q)
        self._refuse_beyond(int(places.max()) + 1, positions)
        at, places = chosen.to(k.device)[:, None], places.to(k.device)
        k[at, :, places] = keys.transpose(1, 2)
        v[at, :, places] = values.transpose(1, 2)
        p[at, places] = positions
        self.counts[layer, chosen] += q
        counts = self.counts[layer]
        self._even[layer] = int(counts[0]) if bool((counts == counts[0]).all()) else None

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
        k, v, p = self._stored(layer)
        even = self._even[layer]
        if even is not None and rows is None:
            k, v, p = k[:, :, :even], v[:, :, :even], p[:, :even]
            if queries.shape[2] == 1 and bool((p[:, -1:] <= positions).all()):
                return functional.scaled_dot_product_attention(queries, k, v)
            seen = p[:, None, :] <= positions[:, :, None]
        else:
            chosen = torch.arange(self.rows) if rows is None else rows.cpu()
            counts = self.counts[layer, chosen]
            longest = int(counts.max()) if len(counts) else 0
            index = chosen.to(k.device)
            k, v, p = (part[index] for part in (k, v, p))
            k, v, p = k[:, :, :longest], v[:, :, :longest], p[:, :longest]
            held = torch.arange(longest, device=k.device) < counts.to(k.device)[:, None]
            seen = held[:, None, :] & (p[:, None, :] <= positions[:, :, None])
        return functional.scaled_dot_product_attention(queries, k, v, attn_mask=seen[:, None])

    def forget_from(self, position: int | Tensor) -> None:
        """Drop what lies at a position or after it, at every layer: rejected drafts.

        Args:
            position: one for all rows, or (n,).
        """
        bound = torch.as_tensor(position).expand(self.rows)
        for layer in range(self.layers):
            stored = self._positions[layer]
            if stored is None:
                continue
            held = torch.arange(stored.shape[1]) < self.counts[layer][:, None]
            kept = (held & (stored.cpu() < bound[:, None])).sum(dim=1)
            self.counts[layer] = kept
            same = len(kept) == 0 or bool((kept == kept[0]).all())
            self._even[layer] = (int(kept[0]) if len(kept) else 0) if same else None

    def entries(self) -> int:
        """How many (layer, row, token) triples are stored: what the memory is paid for."""
        return int(self.counts.sum())

    def _refuse_beyond(self, entries: int, positions: Tensor) -> None:
        last = int(positions.max())
        if max(entries, last + 1) > self.context:
            raise InputError(
                f"the model tells {self.context} positions apart, the cache was to hold "
                f"{max(entries, last + 1)}: shorten the text, or start again from its end"
            )

    def _stored(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        k, v, p = self._keys[layer], self._values[layer], self._positions[layer]
        if k is None or v is None or p is None:
            raise InputError(f"nothing is stored at layer {layer} yet: extend before you attend")
        return k, v, p

    def _room(self, layer: int, entries: int, like: Tensor) -> None:
        """Make room for so many entries a row, doubling."""
        have = self._positions[layer]
        if have is not None and have.shape[1] >= entries:
            return
        room = min(self.context, max(FIRST_ROOM, 2 * entries))
        shape = (self.rows, like.shape[1], room, like.shape[3])
        k, v = like.new_zeros(shape), like.new_zeros(shape)
        p = torch.zeros(self.rows, room, dtype=torch.int64, device=like.device)
        if have is not None:
            old_k, old_v, old_p = self._stored(layer)
            k[:, :, : old_k.shape[2]] = old_k
            v[:, :, : old_v.shape[2]] = old_v
            p[:, : old_p.shape[1]] = old_p
        self._keys[layer], self._values[layer], self._positions[layer] = k, v, p
