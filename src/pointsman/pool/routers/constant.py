"""One expectation for every query: the zero router.

Whatever the price of quality, the same model answers all queries; mixing two such choices by chance
gives the hull of the single models, which a router must beat to be worth its keep ("zero router",
RouterBench, 2403.12031).

Legend: N queries, M models.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, tabulate
from pointsman.pool.saving import Arrays, Plain


class Constant:
    """Mean quality and mean cost of each model, whatever the query."""

    name = "constant"
    title = "Best single model"

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it."""
        table = tabulate(features, quality)
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs(length=False, task=False).fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        quality = np.tile(self.mean_, (len(features), 1))
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        return written({}, {"mean": self.mean_}, self.costs_)

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.mean_ = arrays["mean"]
        self.costs_ = costs_of(plain, arrays)
        return self
