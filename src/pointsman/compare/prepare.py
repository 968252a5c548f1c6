"""From raw arrays to what networks take: standardised, channels first; fitted on training data."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pointsman.compare.data import Array, Kind, Part


@dataclass(frozen=True, eq=False)
class Preparation:
    """Means and scales of features (d,) or channels (C,); text passes as it is."""

    kind: Kind
    mean: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, kind: Kind, x: Array) -> Self:
        """Statistics of the training inputs; a constant feature keeps the scale 1."""
        if kind == "text":
            return cls(kind, torch.zeros(0), torch.ones(0))
        axes = (0,) if kind == "features" else (0, 1, 2)
        # float64, since a float32 sum over many rows loses digits
        mean = x.mean(axis=axes, dtype=np.float64)
        scale = x.std(axis=axes, dtype=np.float64)
        # relative: a feature of values around 1e-12 is as good as any, once it is scaled
        scale[scale <= 1e-8 * np.abs(mean)] = 1.0
        return cls(kind, torch.from_numpy(mean).float(), torch.from_numpy(scale).float())

    def inputs(self, x: Array) -> Tensor:
        """What the networks take: (n, d) or (n, C, H, W) float32, or (n, L) uint8 bytes."""
        if self.kind == "text":
            return torch.from_numpy(np.array(x[:, :-1]))
        # pandas hands out read-only arrays, which torch warns of: those are copied
        values = torch.from_numpy(np.require(x, requirements=("C", "W"))).float()
        values = (values - self.mean) / self.scale
        if self.kind == "images":
            # A view of NHWC memory in NCHW order is torch's channels_last format.
            return values.permute(0, 3, 1, 2)
        return values

    def targets(self, part: Part) -> Tensor:
        """(n,) classes, or (n, L) following bytes, int64."""
        if self.kind == "text":
            return torch.from_numpy(part.x[:, 1:].astype(np.int64))
        return torch.from_numpy(np.require(part.y, np.int64, ("C", "W")))
