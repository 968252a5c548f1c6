"""What a call will cost: the part that every router shares.

A call's cost is a price for the tokens sent, which grow with the query's length, and one for the
tokens that come back, which depend on the task more than on anything else a query shows:

    cost = mean of the model + slope × (length - mean length) + effect of the task

The slope is drawn towards zero by how uncertain it is and is never negative; task effects are drawn
towards zero by `groups`. Nothing below the least cost ever seen of a model is predicted.

Legend: N queries, U distinct ones, M models of the log, L distinct ones, T tasks.
"""

from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.groups import STRENGTHS, Groups, task_names, task_rows
from pointsman.pool.routers.table import Array, Table, tabulate
from pointsman.pool.saving import Arrays, Plain


class Costs:
    """Predicts the cost of a call from the length and the task of the query.

    Args:
        length: let the cost follow the query's length.
        task: let the cost follow the query's task, where known.
    """

    def __init__(self, *, length: bool = True, task: bool = True) -> None:
        self.length = length
        self.task = task

    def fit(self, features: Features, cost: npt.ArrayLike) -> Self:
        """Learn from (N, M) costs, NaN where unknown.

        Raises:
            InputError: no cost of a model is known.
        """
        table = tabulate(_only(features), cost, "cost")
        self.tasks_ = task_names(table.features.task) if self.task else []
        columns = [self._column(table, at) for at in range(len(table.mean))]
        at = table.model
        self.base_ = np.array([base for base, _, _, _ in columns])[at]
        self.slope_ = np.array([slope for _, slope, _, _ in columns])[at]
        self.least_ = np.array([least for _, _, least, _ in columns])[at]
        self.effect_ = np.stack([effect for _, _, _, effect in columns], axis=1)[:, at]
        return self

    def predict(self, features: Features) -> Array:
        """(N, M) expected cost, never negative."""
        row = task_rows(self.tasks_, features.task, len(features))
        length = features.length.astype(np.float64)[:, None]
        expected = self.base_ + self.slope_ * length + self.effect_[row]
        cost: Array = np.maximum(expected, self.least_)
        return cost

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain = {"length": self.length, "task": self.task, "tasks": self.tasks_}
        return plain, {
            "base": self.base_,
            "slope": self.slope_,
            "least": self.least_,
            "effect": self.effect_,
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(length=plain["length"], task=plain["task"])
        self.tasks_ = list(plain["tasks"])
        self.base_, self.slope_ = arrays["base"], arrays["slope"]
        self.least_, self.effect_ = arrays["least"], arrays["effect"]
        return self

    def _column(self, table: Table, at: int) -> tuple[float, float, float, Array]:
        """Cost at no length, slope, least cost, and (T + 1,) effects of one model."""
        weight, deviation = table.count[:, at], table.deviation[:, at]
        known = weight > 0
        length = table.features.length.astype(np.float64)
        middle = float((weight * length).sum() / weight.sum())
        slope = _slope(length - middle, deviation, weight) if self.length else 0.0
        rest = np.where(known, deviation - slope * (length - middle), 0.0)
        effect = self._effects(table, rest, at)
        base = float(table.mean[at]) - slope * middle
        least = float(table.mean[at] + deviation[known].min())
        return base, slope, max(0.0, least), effect

    def _effects(self, table: Table, rest: Array, at: int) -> Array:
        if not self.tasks_:
            return np.zeros(1)
        alone = replace(table, deviation=rest[:, None], count=table.count[:, [at]])
        row = task_rows(self.tasks_, table.features.task, len(table))
        groups = Groups(alone, row, len(self.tasks_) + 1)
        effect = groups.effect(groups.best_strength(STRENGTHS)[0])[:, 0]
        effect[-1] = 0.0  # a query whose task is not known
        return effect


def _only(features: Features) -> Features:
    """Length and task alone: queries that agree in both cost the same."""
    nothing = np.zeros((len(features), 0), dtype=np.float32)
    return Features(nothing, None, features.length, features.task)


def _slope(x: Array, y: Array, weight: Array) -> float:
    """Least squares through the means; zero within two standard errors of zero, or below it."""
    spread = float((weight * x * x).sum())
    calls = float(weight.sum())
    if spread <= 0 or calls < 3:
        return 0.0
    slope = float((weight * x * y).sum()) / spread
    error = 4 * float((weight * (y - slope * x) ** 2).sum()) / (calls - 2) / spread
    if slope <= 0 or error >= slope * slope:
        return 0.0
    return slope * (1 - error / (slope * slope))
