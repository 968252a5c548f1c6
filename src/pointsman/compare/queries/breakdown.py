"""Who pays for the saving: a policy's drop group by group, and queries that it sends up and down.

Legend: N queries, M models.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pointsman.compare.queries.metrics import Array
from pointsman.frontier import Outcomes
from pointsman.pool.log import Log, Texts
from pointsman.pool.routers.router import Prediction

MOST_GROUPS = 12
LEAST_QUERIES = 10  # of a group that is shown by itself
TWO_SIDED = 1.96
SHOWN_CHARACTERS = 240


def by_group(log: Log, pick: Outcomes, reference: int, answered: Sequence[int]) -> dict[str, Any]:
    """Drop and saving within the values of each group column, the largest drop first.

    Args:
        log: test queries.
        pick: outcomes of the one picked setting on them.
        reference: column of the reference.
        answered: (N,) column of the model whose answer was given.
    """
    found = {}
    for name, column in log.groups.items():
        values, counts = np.unique(column.astype(str), return_counts=True)
        large = values[counts >= LEAST_QUERIES]
        if len(large) < 2:
            continue
        rows = [_group(value, column == value, pick, reference, answered) for value in large]
        rows.sort(key=lambda row: -row["drop"])
        shown = rows if len(rows) <= MOST_GROUPS else rows[: MOST_GROUPS - 2] + rows[-2:]
        found[name] = {"values": len(values), "rows": shown}
    return found


def _group(
    value: str, inside: Any, pick: Outcomes, reference: int, answered: Sequence[int]
) -> dict[str, Any]:
    drops: Array = pick.drops()[0, inside]
    error = TWO_SIDED * float(np.sqrt((drops.var() + 1 / len(drops)) / len(drops)))
    spent, before = pick.cost[0, inside].sum(), pick.reference_cost[inside].sum()
    return {
        "value": value,
        "queries": len(drops),
        "reference_quality": float(pick.reference_quality[inside].mean()),
        "quality": float(pick.quality[0, inside].mean()),
        "drop": float(drops.mean()),
        "drop_low": float(drops.mean()) - error,
        "drop_high": float(drops.mean()) + error,
        "saved": 1 - float(spent / before) if before > 0 else 0.0,
        "to_reference": float(np.mean(np.asarray(answered)[inside] == reference)),
    }


def examples(
    log: Log, prediction: Prediction, answered: Sequence[int], reference: int, most: int
) -> dict[str, list[dict[str, Any]]]:
    """Queries that the policy sends to the reference with most to gain, and away with least.

    Args:
        log: test queries.
        prediction: of the picked strategy.
        answered: (N,) column of the model whose answer was given.
        reference: its column.
        most: how many of either.
    """
    expected = prediction.quality
    rest = np.delete(expected, reference, axis=1)
    needed = expected[:, reference] - (rest.max(axis=1) if rest.size else 0.0)
    up = np.asarray(answered) == reference
    order = np.lexsort((np.arange(len(log)), -needed))
    sent = {"up": order[up[order]][:most], "down": order[::-1][~up[order[::-1]]][:most]}
    return {
        way: [_example(log, at, int(answered[at]), expected[at]) for at in rows]
        for way, rows in sent.items()
    }


def _example(log: Log, at: int, model: int, expected: Array) -> dict[str, Any]:
    return {
        "query": shortened(log.queries, at),
        "model": log.models[model],
        "expected": [float(value) for value in expected],
        "quality": [float(value) for value in log.quality[at]],
    }


def shortened(queries: Texts, at: int) -> str:
    """A query on one line, cut where it is long."""
    text = " ".join(str(queries[at]).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
