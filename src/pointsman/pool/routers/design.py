"""Dense features made ready for a router: centred, and on one scale.

Legend: N queries, D dense features.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.state import check_width
from pointsman.pool.routers.table import Array
from pointsman.pool.saving import Arrays, Plain


class Design:
    """The D dense features, and the logarithm of the length as one more.

    All D share one scale, so that their mean variance is 1: scaling each by itself would blow up
    the small directions of a reduced text, which are mostly noise.
    """

    def fit(self, features: Features) -> Self:
        """Learn centre and scale from distinct queries in canonical order, see `table`."""
        x = _columns(features)
        self.mean_ = x.mean(axis=0)
        variance = ((x - self.mean_) ** 2).mean(axis=0)
        self.scale_ = np.ones(len(self.mean_))
        for part in (slice(0, -1), slice(-1, None)):
            spread = variance[part].mean() if variance[part].size else 0.0
            self.scale_[part] = 1 / np.sqrt(spread) if spread > 1e-12 else 0.0
        return self

    def transform(self, features: Features) -> Array:
        """(N, D + 1) features of mean zero."""
        check_width(features.dense.shape[1], len(self.mean_) - 1)
        ready: Array = (_columns(features) - self.mean_) * self.scale_
        return ready

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        return {}, {"mean": self.mean_, "scale": self.scale_}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls()
        self.mean_, self.scale_ = np.asarray(arrays["mean"]), np.asarray(arrays["scale"])
        return self


def directions(features: Features, centre: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, D) dense features as seen from a centre, of length one; zero where they are the centre.

    Args:
        features: of N queries.
        centre: (D,)
    """
    check_width(features.dense.shape[1], len(centre))
    away = features.dense.astype(np.float64) - centre
    length = np.sqrt((away * away).sum(axis=1, keepdims=True))
    unit = np.divide(away, length, out=np.zeros_like(away), where=length > 1e-6)
    single: npt.NDArray[np.float32] = unit.astype(np.float32)
    return single


def _columns(features: Features) -> Array:
    length = np.log1p(np.maximum(features.length.astype(np.float64), 0.0))
    return np.concatenate([features.dense.astype(np.float64), length[:, None]], axis=1)
