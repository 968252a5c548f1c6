"""Quality as a function of the query's length and nothing else.

A trivial baseline that beat published routers on their own benchmarks (see RouteLLM's GSM8K and
MMLU outcomes), so it stands beside every learned one. Queries are cut into bins of equal size by
length; between the middles of two bins the expectation is straight, beyond the outer ones constant.

Legend: N queries, M models, G bins.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.groups import Groups
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Indices, tabulate
from pointsman.pool.saving import Arrays, Plain


class PromptLength:
    """Piecewise linear in the logarithm of the length.

    Args:
        bins: at most; fewer where a bin would hold under 25 distinct queries.
    """

    name = "prompt-length"
    title = "Prompt length"

    def __init__(self, *, bins: int = 16) -> None:
        self.bins = bins

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it."""
        table = tabulate(features, quality)
        x = _logarithm(table.features)
        group, self.middle_ = _cut(x, max(1, min(self.bins, len(x) // 25)))
        groups = Groups(table, group, len(self.middle_))
        expected = table.mean + table.trust() * groups.effect(groups.best_strength()[0])
        self.expected_ = expected[:, table.model]
        self.costs_ = Costs(task=False).fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        x = _logarithm(features)
        quality = np.stack([np.interp(x, self.middle_, known) for known in self.expected_.T], 1)
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        learned = {"middle": self.middle_, "expected": self.expected_}
        return written({"bins": self.bins}, learned, self.costs_)

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.middle_ = np.asarray(arrays["middle"])
        self.expected_ = np.asarray(arrays["expected"])
        self.costs_ = costs_of(plain, arrays)
        return self


def _logarithm(features: Features) -> Array:
    return np.log1p(np.maximum(features.length.astype(np.float64), 0.0))


def _cut(x: Array, bins: int) -> tuple[Indices, Array]:
    """(U,) the bin of each value, and the mean of each bin; equal values share a bin."""
    edges = np.unique(np.quantile(x, np.arange(1, bins) / bins))
    raw = np.searchsorted(edges, x, side="right")
    _, group = np.unique(raw, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)
    return group, np.bincount(group, x) / np.bincount(group)
