"""Prices of quality: at which a query changes its model. Legend: N queries, M models, P prices."""

import numpy as np
import numpy.typing as npt

from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.taking import MOST_SETTINGS, Columns, best_option, thinned

Array = npt.NDArray[np.float64]
ROWS, CHANGES = 4096, 512  # looked at, spread evenly: more change neither ends nor middle much


def chosen_at(prediction: Prediction, price: float) -> Columns:
    """(N,) column of the largest predicted quality - price * predicted cost."""
    return best_option(prediction.quality - price * prediction.cost, prediction.cost)


def prices(
    prediction: Prediction, *, least: float = -np.inf, most: int = MOST_SETTINGS
) -> list[float]:
    """Prices, ascending, between all those at which some query changes its model; thinned.

    The lowest sends every query to its dearest model that is not dominated, the highest to the
    cheapest. They are spread over the predicted mean cost, not over the price.

    Args:
        prediction: of the queries whose changes are looked for.
        least: no price below this one.
        most: how many, at most.
    """
    some = np.unique(np.linspace(0, len(prediction.quality) - 1, ROWS).round().astype(int))
    rows = Prediction(prediction.quality[some], prediction.cost[some])
    changes = _changes(rows)
    if len(changes) > CHANGES:
        changes = changes[np.unique(np.linspace(0, len(changes) - 1, CHANGES).round().astype(int))]
    if len(changes) == 0:
        return [max(0.0, least)]
    room = max(float(changes[-1] - changes[0]), abs(float(changes[-1])), 1e-9)
    middles = changes[:-1] + np.diff(changes) / 2
    candidates = np.concatenate([[changes[0] - room], middles, [changes[-1] + room]])
    if np.isfinite(least):
        candidates = np.concatenate([[least], candidates[candidates > least]])
    spent = []
    for price in candidates:
        column = chosen_at(rows, float(price))
        spent.append(float(rows.cost[np.arange(len(column)), column].mean()))
    return [float(candidates[at]) for at in thinned(spent, most)]


def _changes(prediction: Prediction) -> Array:
    """Distinct prices, ascending, at which the best model of some query changes.

    A query's best value over the price is the upper envelope of M straight lines; it is walked from
    the steepest line on, one corner at a time for all queries together.
    """
    quality, cost = prediction.quality, prediction.cost
    rows = np.arange(len(quality))
    # at a price of -inf the dearest model leads, among equally dear ones the better
    dearest = cost == cost.max(axis=1, keepdims=True)
    at = np.where(dearest, quality, -np.inf).argmax(axis=1)
    found = []
    for _ in range(quality.shape[1] - 1):
        saved = cost[rows, at][:, None] - cost
        lost = quality[rows, at][:, None] - quality
        corner = np.full(quality.shape, np.inf)
        cheaper = saved > 0
        # the line q - price * c of a cheaper model takes over where price * saved = lost
        corner[cheaper] = lost[cheaper] / saved[cheaper]
        nearest = corner.min(axis=1)
        go = np.isfinite(nearest)
        if not go.any():
            break
        found.append(nearest[go])
        tie = corner == nearest[:, None]
        step = np.where(tie, cost, np.inf).argmin(axis=1)  # the cheapest of those that meet there
        at = np.where(go, step, at)
    return np.unique(np.concatenate(found)) if found else np.zeros(0)
