"""A table over tasks: what each model scored, on average, on the queries of a task.

A trivial baseline that beats published routers where tasks are known (RouteLLM's MMLU outcomes).
How far a task's mean is drawn towards the model's own is chosen by leaving queries out.

Legend: N queries, M models, T tasks.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.groups import Groups, task_names, task_rows
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, tabulate
from pointsman.pool.saving import Arrays, Plain


class PerTask:
    """Mean of each model in each task; the mean of the model where the task is not known."""

    name = "per-task"
    title = "Per-task table"

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it."""
        table = tabulate(features, quality)
        self.tasks_ = task_names(table.features.task)
        row = task_rows(self.tasks_, table.features.task, len(table))
        groups = Groups(table, row, len(self.tasks_) + 1)
        expected = table.mean + table.trust() * groups.effect(groups.best_strength()[0])
        expected[-1] = table.mean
        self.table_ = expected[:, table.model]
        self.costs_ = Costs(length=False).fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        row = task_rows(self.tasks_, features.task, len(features))
        return Prediction(self.table_[row], self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        plain, arrays = written({}, {"table": self.table_}, self.costs_)
        return {**plain, "tasks": self.tasks_}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.tasks_ = list(plain["tasks"])
        self.table_ = np.asarray(arrays["table"])
        self.costs_ = costs_of(plain, arrays)
        return self
