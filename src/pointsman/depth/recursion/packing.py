"""Some tokens of each sequence, moved together so that a block runs on these alone.

Legend: n sequences, S tokens of each, m sequences of a pack, k places of it, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pack:
    """Which tokens stand where.

    Attributes:
        rows: (m,) the sequences.
        columns: (m, k) places of the tokens in their sequence; in each row those that were asked
            for, ascending, then any others to fill up.
        held: (m, k) bool, which places are no fill.
    """

    rows: Tensor
    columns: Tensor
    held: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(n, S, ...) → (m, k, ...)."""
        return x[self.rows[:, None], self.columns]

    def put(self, x: Tensor, changed: Tensor) -> Tensor:
        """x (n, S, D) with the pack's tokens replaced by (m, k, D); fill stays as it was."""
        kept = torch.where(self.held[..., None], changed, self.take(x))
        return x.index_put((self.rows[:, None], self.columns), kept)


def packed(active: Tensor) -> Pack:
    """One pack of all sequences, as wide as the fullest, filled up at the end.

    Fill comes after every token that was asked for, so that under a causal mask none of these sees
    any of it.

    Args:
        active: (n, S) bool, at least one in all.
    """
    counts = active.sum(dim=1)
    width = int(counts.max())
    columns = (~active).to(torch.uint8).sort(dim=1, stable=True).indices[:, :width]
    held = torch.arange(width, device=active.device) < counts[:, None]
    return Pack(torch.arange(len(active), device=active.device), columns, held)


def packed_without_fill(active: Tensor) -> Iterator[Pack]:
    """One pack for each number of active tokens in a sequence, so that there is no fill.

    Args:
        active: (n, S) bool.
    """
    counts = active.sum(dim=1)
    for count in sorted(set(counts.tolist())):
        if count:
            rows = (counts == count).nonzero().squeeze(1)
            pack = packed(active[rows])
            yield Pack(rows, pack.columns, pack.held)
