"""A small multilayer perceptron for all models together, averaged over members.

    quality = mean of the model + max(0, features · A + a) · B

One hidden layer that all models share, trained by Adam (1412.6980) on the squared error of the
cells that are known. Each member is stopped early on its own held-out part of the queries, and the
members' expectations are averaged. The weights towards the models start at zero and decay, so that
a model of which little is known stays at its mean; on top of that its deviations are drawn to zero
as if 20 further cells of its mean were known. Learning and answering are numpy alone:
scikit-learn's MLPRegressor knows no missing cells.

Legend: N queries, U distinct ones, M models, L distinct ones, D features, H hidden units.
"""

from typing import Any, Self

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

Weights = list[Array]  # A (D, H), a (H,), B (H, L)

BATCH, MOST_EPOCHS, PATIENCE = 128, 60, 8
RATE, DECAY = 1e-3, 0.3
MOMENTUM, MEMORY = 0.9, 0.999


class MultilayerPerceptron:
    """One hidden layer, several members.

    Args:
        hidden: units of each member.
        members: trained apart and averaged.
        seed: of the first weights, the batches and the held-out parts.
    """

    name = "multilayer-perceptron"
    title = "Multilayer perceptron"

    def __init__(self, *, hidden: int = 32, members: int = 5, seed: int = 0) -> None:
        self.hidden = hidden
        self.members = members
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: no hidden unit or no member.
        """
        if self.hidden < 1 or self.members < 1:
            raise InputError(
                f"hidden and members must be 1 or more, got {self.hidden} and {self.members}"
            )
        table = tabulate(features, quality)
        self.design_ = Design().fit(table.features)
        x = self.design_.transform(table.features)
        part = folds(len(x), max(5, self.members), self.seed)
        trained = [
            _train(x, table, part == at, self.hidden, self.seed + at) for at in range(self.members)
        ]
        share = table.trust() / self.members
        self.into_ = np.concatenate([weights[0] for weights in trained], axis=1).T.copy()
        self.bias_ = np.concatenate([weights[1] for weights in trained])
        out = np.concatenate([weights[2] for weights in trained]) * share
        self.out_ = np.ascontiguousarray(out.T[table.model])
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        hidden = np.maximum(dot(self.design_.transform(features), self.into_) + self.bias_, 0.0)
        return Prediction(self.mean_ + dot(hidden, self.out_), self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain, arrays = nested({"design": self.design_.to_state()})
        own = {"into": self.into_, "bias": self.bias_, "out": self.out_, "mean": self.mean_}
        keywords = {"hidden": self.hidden, "members": self.members, "seed": self.seed}
        kept, learned = written(keywords, {**own, **arrays}, self.costs_)
        return {**kept, **plain}, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.design_ = Design.from_state(plain["design"], inside("design", arrays))
        self.into_, self.bias_ = np.asarray(arrays["into"]), np.asarray(arrays["bias"])
        self.out_, self.mean_ = np.asarray(arrays["out"]), np.asarray(arrays["mean"])
        self.costs_ = costs_of(plain, arrays)
        return self


def _train(x: Array, table: Table, held: npt.NDArray[np.bool_], hidden: int, seed: int) -> Weights:
    """The weights of least error on the held-out part, those of the start included."""
    rng = np.random.default_rng(seed)
    d = x.shape[1]
    weights = [
        rng.normal(size=(d, hidden)) * np.sqrt(1.0 / d),
        np.zeros(hidden),
        np.zeros((hidden, table.count.shape[1])),
    ]
    rows = np.flatnonzero(~held)
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    best, least, since, step = weights, table.error(np.zeros_like(table.count[held]), held), 0, 0
    for _ in range(MOST_EPOCHS if len(rows) else 0):
        order = rng.permutation(rows)
        for start in range(0, len(order), BATCH):
            at = order[start : start + BATCH]
            gradient = _gradient(weights, x[at], table.deviation[at], table.count[at])
            step += 1
            weights = _adam(weights, gradient, first, second, step)
        error = table.error(_forward(weights, x[held]), held)
        if error < least:
            best, least, since = weights, error, 0
        else:
            since += 1
            if since == PATIENCE:
                break
    return best


def _forward(weights: Weights, x: Array) -> Array:
    into, bias, out = weights
    expected: Array = np.maximum(x @ into + bias, 0.0) @ out
    return expected


def _gradient(weights: Weights, x: Array, deviation: Array, count: Array) -> Weights:
    """Of the mean squared error over the known cells, by hand."""
    into, bias, out = weights
    hidden = np.maximum(x @ into + bias, 0.0)
    gap = count * (hidden @ out - deviation) / len(x)
    back = (gap @ out.T) * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ gap]


def _adam(
    weights: Weights, gradient: Weights, first: Weights, second: Weights, step: int
) -> Weights:
    """One step of Adam with decoupled decay (1711.05101); the moments are updated in place."""
    moved = []
    for w, g, m, v in zip(weights, gradient, first, second, strict=True):
        m += (1 - MOMENTUM) * (g - m)
        v += (1 - MEMORY) * (g * g - v)
        scaled = (m / (1 - MOMENTUM**step)) / (np.sqrt(v / (1 - MEMORY**step)) + 1e-8)
        moved.append(w - RATE * (scaled + DECAY * w))
    return moved
