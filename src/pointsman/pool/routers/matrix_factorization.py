"""A few factors shared by all models: what a query asks for times what a model has.

    quality = mean of the model + (features · P) · v of the model

with P (D, R) and v (R,) for each model, as in the matrix factorisation of RouteLLM (2406.18665),
but regressed on qualities, so that ties and missing cells need no special care. Rank and penalty
are chosen on held-out queries. It starts from the best low-rank approximation of one ridge
regression per model (reduced-rank regression, Izenman 1975) and then alternates least squares. Only
the second moments of features and qualities are ever needed, so a long log takes no longer.

Legend: N queries, U distinct ones, M models, L distinct ones, D features, R factors.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import Design
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Table, folds, tabulate
from pointsman.pool.saving import Arrays, Plain, inside, nested

PENALTIES = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e6)
FOLDS, SWEEPS = 4, 5
DIRECTIONS = 192  # of the features, those of greatest variance, that factors are made of


class Moments(NamedTuple):
    """Sums over the scored cells of each model.

    Args:
        gram: (L, D, D) features with features.
        cross: (L, D) features with deviations.
        square: (L,) squared deviations.
    """

    gram: Array
    cross: Array
    square: Array


class MatrixFactorization:
    """Low-rank regression of all models together.

    Args:
        ranks: the numbers of factors to choose among.
        seed: of the split that rank and penalty are chosen on.
    """

    name = "matrix-factorization"
    title = "Matrix factorisation"

    def __init__(self, *, ranks: tuple[int, ...] = (1, 2, 4, 8), seed: int = 0) -> None:
        self.ranks = tuple(ranks)
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: no rank, or one below 1.
        """
        if not self.ranks or min(self.ranks) < 1:
            raise InputError(f"ranks must be numbers from 1 on, got {self.ranks}")
        table = tabulate(features, quality)
        self.design_ = Design().fit(table.features)
        x = self.design_.transform(table.features)
        axes = _axes(x)
        factors, models = self._factors(x @ axes, table)
        weights = table.trust()[:, None] * (models @ (axes @ factors).T)
        self.weights_ = weights[table.model]
        self.embeddings_ = models[table.model]
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        quality = self.mean_ + dot(self.design_.transform(features), self.weights_)
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain, arrays = nested({"design": self.design_.to_state()})
        own = {"weights": self.weights_, "embeddings": self.embeddings_, "mean": self.mean_}
        keywords = {"ranks": list(self.ranks), "seed": self.seed}
        kept, learned = written(keywords, {**own, **arrays}, self.costs_)
        return {**kept, **plain}, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.design_ = Design.from_state(plain["design"], inside("design", arrays))
        self.weights_ = np.asarray(arrays["weights"])
        self.embeddings_ = np.asarray(arrays["embeddings"])
        self.mean_ = np.asarray(arrays["mean"])
        self.costs_ = costs_of(plain, arrays)
        return self

    def _factors(self, x: Array, table: Table) -> tuple[Array, Array]:
        """(D, R) and (L, R), of the rank and penalty of least error on held-out queries."""
        part = folds(len(x), FOLDS, self.seed)
        held = [_moments(x, table, part == fold) for fold in range(int(part.max()) + 1)]
        whole = Moments(*(sum(parts) for parts in zip(*held, strict=True)))
        ranks = sorted({min(rank, len(table.mean), x.shape[1]) for rank in self.ranks})
        errors: dict[tuple[float, int], float] = {}
        for out in held:
            rest = Moments(*(all_ - some for all_, some in zip(whole, out, strict=True)))
            for penalty in PENALTIES:
                for rank in ranks:
                    factors, models = _alternate(rest, rank, penalty)
                    key = (-penalty, rank)
                    errors[key] = errors.get(key, 0.0) + _error(out, models @ factors.T)
        _, penalty, rank = min((error, *key) for key, error in errors.items())
        return _alternate(whole, rank, -penalty)


def _axes(x: Array) -> Array:
    """(D, at most DIRECTIONS) orthogonal directions of greatest variance; all where few."""
    if x.shape[1] <= DIRECTIONS:
        return np.eye(x.shape[1])
    axes: Array = np.linalg.eigh(x.T @ x)[1][:, -DIRECTIONS:]
    return axes


def _moments(x: Array, table: Table, rows: npt.NDArray[np.bool_]) -> Moments:
    x, count, deviation = x[rows], table.count[rows], table.deviation[rows]
    patterns: dict[bytes, Array] = {}  # models scored on the same queries share their moments
    for weight in count.T:
        key = weight.tobytes()
        if key not in patterns:
            patterns[key] = (x * weight[:, None]).T @ x
    gram = np.stack([patterns[weight.tobytes()] for weight in count.T])
    return Moments(gram, (count * deviation).T @ x, (count * deviation**2).sum(axis=0))


def _error(moments: Moments, weights: Array) -> float:
    """Squared error of (L, D) weights."""
    fitted = np.einsum("ld,lde,le->l", weights, moments.gram, weights, optimize=True)
    return float((moments.square - 2 * (weights * moments.cross).sum(axis=1) + fitted).sum())


def _alternate(moments: Moments, rank: int, penalty: float) -> tuple[Array, Array]:
    """(D, R) factors of the features and (L, R) embeddings of the models."""
    gram, cross, _ = moments
    ridge = penalty * np.eye(cross.shape[1])
    single = np.stack(
        [np.linalg.solve(g + ridge, c) for g, c in zip(gram, cross, strict=True)], axis=1
    )
    pooled = gram.mean(axis=0)
    _, axes = np.linalg.eigh(single.T @ pooled @ single)
    models = axes[:, ::-1][:, :rank]
    models = models * np.where(models.sum(axis=0) < 0, -1.0, 1.0)
    factors = single @ models
    if rank == cross.shape[0]:
        return factors, models
    for _ in range(SWEEPS):
        models = _models(gram, cross, factors, penalty)
        factors, models = _features(gram, cross, factors, models, ridge)
    return factors, models


def _models(gram: Array, cross: Array, factors: Array, penalty: float) -> Array:
    """(L, R) embeddings that fit best, given the factors."""
    inner = np.matmul(factors.T, gram @ factors) + penalty * (factors.T @ factors)
    models: Array = np.matmul(np.linalg.pinv(inner, hermitian=True), (cross @ factors)[..., None])
    return models[..., 0]


def _features(
    gram: Array, cross: Array, factors: Array, models: Array, ridge: Array
) -> tuple[Array, Array]:
    """Factors that fit best one after the other, for embeddings made orthonormal."""
    models, mixed = np.linalg.qr(models)
    factors = factors @ mixed.T
    for at in range(factors.shape[1]):
        own = models[:, at]
        factors[:, at] = 0.0
        rest = cross - np.matmul(gram, (models @ factors.T)[..., None])[..., 0]
        pooled = np.tensordot(own**2, gram, axes=1)
        factors[:, at] = np.linalg.solve(pooled + ridge, own @ rest)
    return factors, models
