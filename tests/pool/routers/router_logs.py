"""Small logs with features, made from numbers alone."""

import inspect
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from pointsman.pool import routers
from pointsman.pool.features.features import Features

# Where the default takes a test long.
FEWER: dict[str, dict[str, Any]] = {
    "GradientBoosting": {"trees": 40},
    "Forest": {"trees": 30},
    "Blend": {
        "routers": (routers.Linear(), routers.KMeans(clusters=(4,))),
        "then": routers.Forest(trees=10),
        "parts": 3,
    },
}


class Made(NamedTuple):
    """Features of N queries, and what M models scored and cost on them."""

    features: Features
    quality: npt.NDArray[np.float64]
    cost: npt.NDArray[np.float64]

    def take(self, rows: Any) -> "Made":
        return Made(self.features.take(rows), self.quality[rows], self.cost[rows])

    def models(self, columns: Any) -> "Made":
        return Made(self.features, self.quality[:, columns], self.cost[:, columns])


def made(n: int = 160, models: int = 3, seed: int = 0, missing: float = 0.1) -> Made:
    """Binary qualities that follow the features, every kind of feature, some cells unknown."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, 6)).astype(np.float32)
    words = np.abs(dense @ rng.normal(size=(6, 30))).astype(np.float32)
    words[words < 1.5] = 0.0
    length = rng.integers(20, 400, size=n).astype(np.float32)
    task = np.array(["", "algebra", "law", "poems"], dtype=object)[rng.integers(0, 4, size=n)]
    chance = 1 / (1 + np.exp(-2 * dense @ rng.normal(size=(6, models)) - 0.5))
    quality = (rng.random((n, models)) < chance).astype(np.float64)
    cost = (np.arange(models) + 1) * (1.0 + 0.01 * length[:, None]) * rng.uniform(0.8, 1.2, (n, 1))
    unknown = rng.random((n, models)) < missing
    unknown[:2] = False
    quality[unknown], cost[unknown] = np.nan, np.nan
    return Made(Features(dense, csr_matrix(words), length, task), quality, cost)


def every_router() -> list[str]:
    """Names of the exported routers."""
    return [
        name
        for name in routers.__all__
        if inspect.isclass(getattr(routers, name)) and hasattr(getattr(routers, name), "title")
    ]


def new(name: str) -> Any:
    """An exported router, not fitted."""
    return getattr(routers, name)(**FEWER.get(name, {}))


def fitted(name: str, log: Made) -> Any:
    """An exported router, fitted."""
    return new(name).fit(log.features, log.quality, log.cost)
