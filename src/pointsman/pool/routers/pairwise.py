"""Abilities that follow the query, learned from comparisons of two models on the same query.

Bradley and Terry's model (1952) with abilities that depend on the query, as the preference routers
of RouteLLM (2406.18665) have it for two models, here for any number:

    chance that model i beats model j = sigmoid(a_i - a_j),    a = b of the model + features · w

A comparison counts (1 + quality of i - quality of j) / 2 of a win: a win, a loss, half of each for
a tie, and what lies between where qualities are continuous. So 2 · sigmoid(a_i - a_j) - 1 is the
expected difference of their qualities, and

    quality of i = level of the query + mean over all models j, i included, of tanh((a_i - a_j) / 2)

For two models their difference is exactly the fitted one. The level, which all models share, is a
ridge regression of what the models scored beyond their means. Where three models contradict each
other (i beats j beats k beats i) abilities cannot follow. The penalty is chosen on held-out
queries; it keeps a model with few comparisons near its overall ability.

Legend: N queries, U distinct ones, M models, L distinct ones, F features, P pairs of models.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.arithmetic import dot
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import Design
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Table, folds, tabulate
from pointsman.pool.saving import Arrays, Plain, inside, nested

PENALTIES = (1e8, 1e5, 1e4, 3e3, 1e3, 300.0, 100.0, 30.0)  # from stiff to loose
FOLDS, STEPS = 3, 60
OVERALL = 1.0  # comparisons that keep an overall ability finite where a model always wins


class Pairwise:
    """Bradley-Terry abilities, linear in the dense features and the length.

    Args:
        seed: of the split that the penalty is chosen on.
    """

    name = "pairwise"
    title = "Pairwise comparisons"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it."""
        table = tabulate(features, quality)
        self.design_ = Design().fit(table.features)
        x = self.design_.transform(table.features)
        self.overall_, self.weights_ = self._abilities(x, table)
        gap = _gaps(self.overall_ + dot(x, self.weights_))
        rest = table.deviation - (gap - _mean(gap, table.count))
        self.shared_ = _level(x, rest, table.count, self.seed)
        level = dot(x, self.shared_[None])
        self.trust_ = table.trust()
        self.offset_ = table.mean - self.trust_ * _mean(gap + level, table.count)
        self.model_ = table.model
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        x = self.design_.transform(features)
        gap = _gaps(self.overall_ + dot(x, self.weights_))
        quality = self.offset_ + self.trust_ * (gap + dot(x, self.shared_[None]))
        return Prediction(quality[:, self.model_], self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain, arrays = nested({"design": self.design_.to_state()})
        own = {
            "overall": self.overall_,
            "weights": self.weights_,
            "shared": self.shared_,
            "offset": self.offset_,
            "trust": self.trust_,
            "model": self.model_,
        }
        kept, learned = written({"seed": self.seed}, {**own, **arrays}, self.costs_)
        return {**kept, **plain}, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.design_ = Design.from_state(plain["design"], inside("design", arrays))
        self.overall_, self.weights_ = np.asarray(arrays["overall"]), np.asarray(arrays["weights"])
        self.shared_, self.offset_ = np.asarray(arrays["shared"]), np.asarray(arrays["offset"])
        self.model_, self.trust_ = np.asarray(arrays["model"]), np.asarray(arrays["trust"])
        self.costs_ = costs_of(plain, arrays)
        return self

    def _abilities(self, x: Array, table: Table) -> tuple[Array, Array]:
        """(L,) overall abilities and (L, F) weights, at the penalty of least held-out loss."""
        part = folds(len(x), FOLDS, self.seed)
        losses = np.zeros(len(PENALTIES))
        for fold in range(int(part.max()) + 1):
            held = part == fold
            ability = np.zeros((len(table.mean), x.shape[1] + 1))
            for at, penalty in enumerate(PENALTIES):
                ability = _fit(x[~held], table, ~held, penalty, ability)
                losses[at] += _loss(_scores(x[held], ability), table, held)[0]
        ability = np.zeros((len(table.mean), x.shape[1] + 1))
        for penalty in PENALTIES[: int(losses.argmin()) + 1]:
            ability = _fit(x, table, np.ones(len(x), dtype=bool), penalty, ability)
        return ability[:, -1].copy(), np.ascontiguousarray(ability[:, :-1])


def _scores(x: Array, ability: Array) -> Array:
    scores: Array = x @ ability[:, :-1].T + ability[:, -1]
    return scores


def _fit(
    x: Array, table: Table, rows: npt.NDArray[np.bool_], penalty: float, start: Array
) -> Array:
    """(L, F + 1) weights, the overall ability last."""
    from scipy.optimize import minimize

    strength = np.full(start.shape, penalty)
    strength[:, -1] = OVERALL

    def objective(flat: Array) -> tuple[float, Array]:
        ability = flat.reshape(start.shape)
        loss, slope = _loss(_scores(x, ability), table, rows)
        gradient = np.concatenate([slope.T @ x, slope.sum(axis=0)[:, None]], axis=1)
        loss += 0.5 * float((strength * ability * ability).sum())
        return loss, (gradient + strength * ability).ravel()

    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS}
    )
    fitted: Array = found.x.reshape(start.shape)
    return fitted


def _loss(scores: Array, table: Table, rows: npt.NDArray[np.bool_]) -> tuple[float, Array]:
    """Cross-entropy of the comparisons of some rows, and its slope in the (rows, L) scores.

    All comparisons of a query weigh together as many as its scored models less one.
    """
    count = table.count[rows]
    quality = table.deviation[rows] + table.mean
    among = 2.0 / np.maximum((count > 0).sum(axis=1, keepdims=True), 1)
    slope, loss = np.zeros(scores.shape), 0.0
    for at in range(scores.shape[1] - 1):
        one, rest = slice(at, at + 1), slice(at + 1, None)
        gap = scores[:, one] - scores[:, rest]
        won = (1 + quality[:, one] - quality[:, rest]) / 2
        weight = np.minimum(count[:, one], count[:, rest]) * among
        loss += float((weight * (np.logaddexp(0.0, gap) - won * gap)).sum())
        push = weight * (0.5 + 0.5 * np.tanh(gap / 2) - won)
        slope[:, at] += push.sum(axis=1)
        slope[:, rest] -= push
    return loss, slope


def _gaps(abilities: Array) -> Array:
    """(N, L) expected lead of each model over the mean of all."""
    lead = np.tanh((abilities[:, :, None] - abilities[:, None, :]) / 2)
    gaps: Array = lead.mean(axis=2)
    return gaps


def _mean(cells: Array, count: Array) -> Array:
    """(L,) mean over the known cells of each model."""
    mean: Array = (count * cells).sum(axis=0) / count.sum(axis=0)
    return mean


def _level(x: Array, rest: Array, count: Array, seed: int) -> Array:
    """(F,) ridge weights of what a query's scored models share, the penalty by held-out error."""
    weight = count.sum(axis=1)
    shared = (count * rest).sum(axis=1) / weight
    part = folds(len(x), FOLDS, seed)
    held = [_moments(x, shared, weight, part == fold) for fold in range(int(part.max()) + 1)]
    gram = np.sum([g for g, _ in held], axis=0)
    cross = np.sum([c for _, c in held], axis=0)
    errors = []
    for penalty in PENALTIES:
        ridge = penalty * np.eye(x.shape[1])
        fits = [np.linalg.solve(gram - g + ridge, cross - c) for g, c in held]
        errors.append(
            sum(float(w @ g @ w - 2 * w @ c) for w, (g, c) in zip(fits, held, strict=True))
        )
    best = PENALTIES[int(np.argmin(errors))]
    level: Array = np.linalg.solve(gram + best * np.eye(x.shape[1]), cross)
    return level


def _moments(
    x: Array, shared: Array, weight: Array, rows: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    weighted = x[rows] * weight[rows, None]
    return weighted.T @ x[rows], weighted.T @ shared[rows]
