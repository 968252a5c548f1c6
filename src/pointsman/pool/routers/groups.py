"""Means of groups of queries, drawn towards each model's own mean where few cells are known.

    expected deviation of group g = sum of its deviations / (cells known in g + strength)

is the posterior mean of a group effect around zero when `strength` cells are worth as much as the
prior (James and Stein 1961; Efron and Morris 1975). The strength is chosen by leaving out each
distinct query in turn, which for such means takes one subtraction.

Legend: N queries, U distinct ones, G groups, L models.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pointsman.pool.routers.table import Array, Indices, Table

# The last one makes every group the mean of its model: nothing but noise was found.
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, np.inf)


class Groups:
    """Sums over groups of a table's queries.

    Args:
        table: of U distinct queries.
        group: (U,) the group of each.
        groups: number of groups G; some may be empty.
    """

    def __init__(self, table: Table, group: Indices, groups: int) -> None:
        self.table = table
        self.group = group
        self.sums = np.zeros((groups, table.count.shape[1]))
        self.count = np.zeros_like(self.sums)
        weighted = table.count * table.deviation
        for column in range(self.sums.shape[1]):
            self.sums[:, column] = np.bincount(group, weighted[:, column], minlength=groups)
            self.count[:, column] = np.bincount(group, table.count[:, column], minlength=groups)

    def effect(self, strength: float) -> Array:
        """(G, L) expected deviation of each group."""
        effect: Array = self.sums / (self.count + strength)
        return effect

    def left_out(self, strength: float) -> Array:
        """(U, L) the effect that each query's group would have without that query."""
        own = self.table.count
        sums = self.sums[self.group] - own * self.table.deviation
        rest: Array = sums / (self.count[self.group] - own + strength)
        return rest

    def best_strength(self, strengths: Sequence[float] = STRENGTHS) -> tuple[float, float]:
        """Strength of least error on queries left out, the greatest of equals; and its error."""
        errors = [(self.table.error(self.left_out(strength)), -strength) for strength in strengths]
        error, strength = min(errors)
        return -strength, error


def task_names(task: npt.NDArray[np.object_] | None) -> list[str]:
    """The tasks that are known, sorted; none where no task is."""
    return [] if task is None else sorted({str(name) for name in task} - {""})


def task_rows(names: Sequence[str], task: npt.NDArray[np.object_] | None, n: int) -> Indices:
    """(N,) the row of each query's task among the names; one past the last where unknown."""
    unknown = len(names)
    if task is None:
        return np.full(n, unknown, dtype=np.int64)
    row = {name: at for at, name in enumerate(names)}
    return np.array([row.get(str(name), unknown) for name in task], dtype=np.int64)
