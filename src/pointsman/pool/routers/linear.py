"""A linear router: one regression a model, on TF-IDF or any other features.

Legend: N queries, U distinct ones, M models, L distinct ones, V sparse and D dense features.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.router import Array, Prediction
from pointsman.pool.routers.state import check_width, costs_of, written
from pointsman.pool.routers.table import tabulate
from pointsman.pool.saving import Arrays, Plain

MOST_STEPS = 200
PRECISION = 1e-4  # of the gradient's largest part, in queries


class Linear:
    """Logistic regression of each model's quality, on sparse and dense features side by side.

    quality = sigmoid(sparse · u + dense · v + b), by least cross-entropy, which is right for any
    quality in [0, 1] and not only for right or wrong (Papke and Wooldridge 1996), plus
    penalty / 2 · (|u|² + |v|² + (b - b₀)²), where b₀ is what the mean quality asks for. The
    penalty is that of a fixed prior: it stays as it is when queries are added.

    Each model is fitted on the queries it was scored on, apart from the others.

    Args:
        penalty: > 0, for rows whose length is about one.
    """

    name = "linear"
    title = "Linear router"

    def __init__(self, *, penalty: float = 3.0) -> None:
        self.penalty = penalty

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: a penalty that is not positive, or a model without a scored query.
        """
        if not self.penalty > 0:
            raise InputError(f"the penalty must be positive, got {self.penalty}")
        table = tabulate(features, quality)
        target = table.deviation + table.mean
        matrix = _matrix(table.features)
        columns = [
            _regress(matrix, target[:, at], table.count[:, at], self.penalty)
            for at in range(len(table.mean))
        ]
        weights, intercept = (np.stack(part) for part in zip(*columns, strict=True))
        weights, self.intercept_ = weights[table.model], intercept[table.model]
        size = matrix.shape[1] - features.dense.shape[1]
        self.sparse_ = np.ascontiguousarray(weights[:, :size].T, dtype=np.float32)
        self.dense_ = weights[:, size:]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        check_width(features.dense.shape[1], self.dense_.shape[1])
        scores = self.intercept_ + dot(features.dense.astype(np.float64), self.dense_)
        if len(self.sparse_):
            check_width(
                0 if features.sparse is None else features.sparse.shape[1], len(self.sparse_)
            )
            scores += features.sparse @ self.sparse_
        return Prediction(_sigmoid(scores), self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        learned = {"sparse": self.sparse_, "dense": self.dense_, "intercept": self.intercept_}
        return written({"penalty": self.penalty}, learned, self.costs_)

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.sparse_, self.dense_ = arrays["sparse"], arrays["dense"]
        self.intercept_ = arrays["intercept"]
        self.costs_ = costs_of(plain, arrays)
        return self


def _matrix(features: Features) -> Any:
    """(U, V + D) sparse and dense features side by side."""
    from scipy.sparse import csr_matrix, hstack

    dense = csr_matrix(features.dense.astype(np.float64))
    if features.sparse is None:
        return dense
    return hstack([features.sparse.astype(np.float64), dense], format="csr")


def _regress(matrix_UF: Any, target: Array, count: Array, penalty: float) -> tuple[Array, float]:
    """(F,) weights and the intercept of one model, from (U,) mean qualities of `count` calls."""
    from scipy.optimize import minimize

    known = count > 0
    matrix, y, times = matrix_UF[known], target[known], count[known]
    mean = (times @ y + 0.5) / (times.sum() + 1.0)  # half a win and half a loss imagined
    start = float(np.log(mean / (1 - mean)))
    transposed = matrix.T.tocsr()

    def loss(w: Array) -> tuple[float, Array]:
        scores = matrix @ w[:-1] + (start + w[-1])
        gap = times * (_sigmoid(scores) - y)
        value = times @ (np.logaddexp(0.0, scores) - y * scores) + penalty / 2 * (w @ w)
        return float(value), np.append(transposed @ gap, gap.sum()) + penalty * w

    found = minimize(
        loss,
        np.zeros(matrix.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST_STEPS, "gtol": PRECISION, "ftol": 1e-10},
    )
    return found.x[:-1], start + float(found.x[-1])


def _sigmoid(scores: Array) -> Array:
    probability: Array = 0.5 * (1.0 + np.tanh(0.5 * scores))
    return probability
