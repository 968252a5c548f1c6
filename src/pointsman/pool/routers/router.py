"""What a router is: features to the quality and the cost that each model would have.

Legend: N queries, M models.
"""

from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features

Array = npt.NDArray[np.float64]


class Prediction(NamedTuple):
    """What a router expects of each model.

    Args:
        quality: (N, M), on the log's scale; not clipped, so that ties stay rare.
        cost: (N, M) in the log's unit, not negative.
    """

    quality: Array
    cost: Array


class Router(Protocol):
    """Predicts quality and cost of every model before any is called.

    A scikit-learn style estimator: keywords in the constructor, `fit` returns self, what was
    learned ends in `_`. Missing cells (NaN) are left out of the fit, never taken as zero; the
    result depends neither on the order of the rows nor on that of the models; equal queries in,
    equal predictions out.
    """

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """Learn from (N, M) qualities and costs, NaN where a model was not asked."""
        ...

    def predict(self, features: Features) -> Prediction:
        """Expected quality and cost, (N, M) each."""
        ...
