"""Labels of the positions of a dimension, and which of them live and die together.

Every position along a dimension of a parameter has a label. Operations tie labels: two that are
tied can only be removed together. Label 0 is for what can never be removed.

A tensor's labelling is a list of factors. A factor has the tensor's rank, and the size of the
tensor in the dimensions along which its labels vary, 1 elsewhere. One that varies along several
dimensions at once comes from a view that split a dimension, such as features into heads: `settle`
decides then which of them holds the units.

Legend: P positions of a dimension.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Factors = list[Tensor]
FIXED = 0


class Labels:
    """Classes of tied labels (union and find, over arrays)."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._used = 1

    def fresh(self, count: int) -> Tensor:
        """(P,) labels that nothing is tied to yet."""
        start, self._used = self._used, self._used + count
        if self._used > len(self._parent):
            old = len(self._parent)
            self._parent = np.resize(self._parent, 2 * self._used)
            self._parent[old:] = np.arange(old, len(self._parent))
        return torch.arange(start, self._used)

    def find(self, labels: Tensor) -> Tensor:
        """The representative of each label's class, in the shape of the labels."""
        roots = self._parent[labels.numpy()]
        while True:
            further = self._parent[roots]
            if np.array_equal(further, roots):
                return torch.from_numpy(np.asarray(roots))
            roots = further

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Make classes of `one` and `other` one, position by position; shapes may broadcast."""
        a, b = np.broadcast_arrays(self.find(one).numpy(), self.find(other).numpy())
        differ = a != b
        for first, second in set(zip(a[differ].tolist(), b[differ].tolist(), strict=True)):
            low, high = sorted((self._root(first), self._root(second)))
            self._parent[high] = low  # the fixed class keeps label 0

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            label = int(self._parent[label])
        return label

    def fix(self, labels: Tensor | None) -> None:
        """These can never be removed."""
        if labels is not None and labels.numel():
            self.tie(labels, torch.tensor(FIXED))

    def reduced(self, factor: Tensor) -> Tensor | None:
        """A factor with size 1 where its labels do not vary; None if nothing of it can vary.

        One class alone is fixed: whoever holds all positions cannot lose them.
        """
        factor = _unrepeated(factor)
        roots = self.find(factor)
        for dim, size in enumerate(roots.shape):
            if size > 1:
                first = roots.narrow(dim, 0, 1)
                if bool((roots == first).all()):
                    roots = first
        if roots.numel() == 1:
            self.fix(roots)
            return None
        return roots

    def simplified(self, factors: Factors) -> Factors:
        """Reduced factors; of two that vary along one dimension the later is fixed."""
        taken: set[int] = set()
        kept = []
        for factor in factors:
            reduced = self.reduced(factor)
            if reduced is None:
                continue
            varying = {dim for dim, size in enumerate(reduced.shape) if size > 1}
            if varying & taken:
                self.fix(reduced)
            else:
                taken |= varying
                kept.append(reduced)
        return kept

    def settle(self, factors: Factors, rank: int) -> list[Tensor | None]:
        """For each dimension (P,) labels or None; the units of a joint factor go to its first.

        So units are heads, not features within heads: those are tied to their head.
        """
        vectors: list[Tensor | None] = [None] * rank
        for factor in self.simplified(factors):
            varying = [dim for dim, size in enumerate(factor.shape) if size > 1]
            for dim in varying[1:]:
                self.tie(factor, factor.narrow(dim, 0, 1))
                factor = factor.narrow(dim, 0, 1)
            reduced = self.reduced(factor)
            vectors[varying[0]] = None if reduced is None else reduced.reshape(-1)
        return vectors


def as_factors(vectors: Sequence[Tensor | None]) -> Factors:
    """Factors that vary along one dimension each."""
    rank = len(vectors)
    return [
        vector.reshape([-1 if at == dim else 1 for at in range(rank)])
        for dim, vector in enumerate(vectors)
        if vector is not None and len(vector) > 1
    ]


def _unrepeated(factor: Tensor) -> Tensor:
    """Without the repeats that an expanded tensor shows."""
    for dim, (size, stride) in enumerate(zip(factor.shape, factor.stride(), strict=True)):
        if size > 1 and stride == 0:
            factor = factor.narrow(dim, 0, 1)
    return factor
