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

MOST_STEPS, MOST_PRODUCTS, HALVINGS = 30, 60, 12
PRECISION = 1e-3  # of the gradient's largest part, in queries


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
        target = np.clip(table.deviation + table.mean, 0.0, 1.0)  # but for rounding
        matrix = _matrix(table.features)
        weights = _Regressions(matrix, target, table.count, self.penalty).solve()[:, table.model]
        size = matrix.shape[1] - features.dense.shape[1] - 1
        self.sparse_ = np.ascontiguousarray(weights[:size], dtype=np.float32)
        self.dense_ = np.ascontiguousarray(weights[size:-1].T)
        self.intercept_ = weights[-1]
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
    """(U, V + D + 1) sparse and dense features side by side, and a one for the intercept."""
    from scipy.sparse import csr_matrix, hstack

    ones = np.ones((len(features), 1))
    dense = csr_matrix(np.concatenate([features.dense.astype(np.float64), ones], axis=1))
    if features.sparse is None:
        return dense
    return hstack([features.sparse.astype(np.float64), dense], format="csr")


class _Regressions:
    """L logistic regressions on one matrix, solved side by side by Newton's method.

    Each step is found by conjugate gradients, scaled by the diagonal, and halved where it would
    lose; the regressions share the passes through the matrix and nothing else.

    Args:
        matrix_UF: features, the last of which is the intercept.
        target_UL: mean qualities in [0, 1].
        count_UL: calls behind each; 0: unknown.
        penalty: of the squares of all weights.
    """

    def __init__(self, matrix_UF: Any, target_UL: Array, count_UL: Array, penalty: float) -> None:
        self.matrix, self.transposed = matrix_UF, matrix_UF.T.tocsr()
        self.squared = self.transposed.power(2)
        self.target, self.count, self.penalty = target_UL, count_UL, penalty
        wins = (count_UL * target_UL).sum(axis=0) + 0.5  # half a win and half a loss imagined
        self.start = np.log(wins / (count_UL.sum(axis=0) + 1.0 - wins))

    def solve(self) -> Array:
        """(F, L) weights, the overall logit in the intercepts."""
        w_FL = np.zeros((self.matrix.shape[1], self.target.shape[1]))
        scores = np.tile(self.start, (len(self.target), 1))
        value = self._loss(w_FL, scores)
        for _ in range(MOST_STEPS):
            chance = _sigmoid(scores)
            gradient = self.transposed @ (self.count * (chance - self.target)) + self.penalty * w_FL
            if np.abs(gradient).max() <= PRECISION:
                break
            step = self._step(self.count * chance * (1 - chance), gradient)
            move = self.matrix @ step
            size = np.ones(len(value))
            for _ in range(HALVINGS):
                lower = self._loss(w_FL + size * step, scores + size * move)
                worse = lower > value
                if not worse.any():
                    break
                size[worse] /= 2
            size[lower > value] = 0.0  # as good as rounding allows
            w_FL, scores = w_FL + size * step, scores + size * move
            value = np.minimum(lower, value)
        w_FL[-1] += self.start
        return w_FL

    def _loss(self, w_FL: Array, scores_UL: Array) -> Array:
        entropy = np.logaddexp(0.0, scores_UL) - self.target * scores_UL
        squares = np.square(w_FL).sum(axis=0)
        loss: Array = (self.count * entropy).sum(axis=0) + self.penalty / 2 * squares
        return loss

    def _step(self, curvature_UL: Array, gradient_FL: Array) -> Array:
        """Newton's step, to a part of the gradient that shrinks with it."""
        scale = 1 / (self.squared @ curvature_UL + self.penalty)
        step, rest = np.zeros_like(gradient_FL), -gradient_FL
        along = ready = scale * rest
        power = (rest * ready).sum(axis=0)
        enough = power * np.minimum(0.1, np.sqrt(power / len(self.target))) ** 2
        for _ in range(MOST_PRODUCTS):
            bent = self.transposed @ (curvature_UL * (self.matrix @ along)) + self.penalty * along
            size = _ratio(power, (along * bent).sum(axis=0)) * (power > enough)
            step, rest = step + size * along, rest - size * bent
            ready = scale * rest
            before, power = power, np.where(size > 0, (rest * ready).sum(axis=0), 0.0)
            if (power <= enough).all():
                break
            along = ready + _ratio(power, before) * along
        return step


def _ratio(above: Array, below: Array) -> Array:
    ratio: Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return ratio


def _sigmoid(scores: Array) -> Array:
    probability: Array = 0.5 * (1.0 + np.tanh(0.5 * scores))
    return probability
