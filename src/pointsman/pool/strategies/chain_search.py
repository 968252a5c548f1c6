"""Which cascades are worth a look: lists of models and bounds, found on held-out rows.

Every list of up to so many models in ascending cost is tried at a ladder of prices. At a price p a
query that ends with the answer of quality y and has spent c is worth y - p * c. The bounds of a
list start from backward induction (as if all queries reached every place) and are then improved
one at a time, the others fixed, counting the queries that do reach it: each such step is exact
over the rule's candidates, so the value never falls.

Legend: N queries, M models, B candidate bounds, L models of one cascade.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.deferral.rules import Bounds, Rule
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.taking import MOST_SETTINGS, thinned

Array = npt.NDArray[np.float64]
ROWS = 2000  # looked at, at most
SWEEPS = 2
WORK, LEAST_PRICES, MOST_PRICES = 4000, 12, 40  # lists times prices, and how many prices
SLACK = 0.003  # mean quality below the best for its cost that is still worth a look


@dataclass(frozen=True)
class Cascade:
    """L models in the order of asking, and for each but the last where one goes on."""

    models: tuple[int, ...]
    bounds: tuple[Bounds, ...]


@dataclass(frozen=True, eq=False)
class _Rows:
    """What the search works on: qualities and costs (N, M), and who goes on at each candidate."""

    quality: Array
    cost: Array
    judging: Array
    bounds: dict[tuple[int, int], list[Bounds]]
    goes: dict[tuple[int, int], npt.NDArray[np.float32]]  # (B, N) 1 where it goes on


def search(log: Log, prediction: Prediction, rule: Rule, most: int) -> list[Cascade]:
    """Cascades from dear to cheap, at most `MOST_SETTINGS`, the single models at the ends included.

    Args:
        log: held-out rows; those with a missing cell are left out.
        prediction: of these rows.
        rule: fitted on others.
        most: models in a list, at most.

    Raises:
        InputError: no row is complete.
    """
    rows, order = _rows(log, prediction, rule)
    lists = [
        models
        for length in range(1, min(most, len(order)) + 1)
        for models in combinations(order, length)
    ]
    found: dict[Cascade, None] = {}
    for price in _ladder(rows, len(lists)):
        best: dict[int, tuple[float, Cascade]] = {}
        for models in lists:
            value, cascade = _tuned(rows, models, price)
            length = len(models)
            if length not in best or value > best[length][0]:
                best[length] = (value, cascade)
        found.update(dict.fromkeys(cascade for _, cascade in best.values()))
    found.update(dict.fromkeys(_sweep(rows, list(found), order)))
    return _worth_a_look(rows, list(found))


def _rows(log: Log, prediction: Prediction, rule: Rule) -> tuple[_Rows, list[int]]:
    complete = np.flatnonzero(log.complete())
    if len(complete) == 0:
        raise InputError(
            f"{log.name}: no query has the quality and the cost of every model, so no cascade can "
            "be tried on it"
        )
    at = complete[np.unique(np.linspace(0, len(complete) - 1, ROWS).round().astype(int))]
    quality, cost = log.quality[at], log.cost[at]
    signal = log.signals[rule.signal][at]
    judging = log.signal_cost.get(rule.signal)
    judging = np.zeros(quality.shape) if judging is None else np.nan_to_num(judging[at])
    some = Prediction(prediction.quality[at], prediction.cost[at])
    mean = cost.mean(axis=0)
    order = sorted(range(len(log.models)), key=lambda m: (mean[m], m))
    bounds, goes = {}, {}
    for place, a in enumerate(order):
        for b in order[place + 1 :]:
            score = rule.score(a, b, signal[:, a], some)
            bounds[a, b] = rule.bounds(score)
            inside = [each.inside(score) for each in bounds[a, b]]
            goes[a, b] = np.stack(inside).astype(np.float32)
    return _Rows(quality, cost, judging, bounds, goes), order


def _ladder(rows: _Rows, lists: int) -> list[float]:
    """Prices, ascending, around the slope from the cheapest to the dearest model."""
    mean_quality, mean_cost = rows.quality.mean(axis=0), rows.cost.mean(axis=0)
    gap = float(mean_cost.max() - mean_cost.min())
    if gap <= 0:
        return [0.0]
    slope = max(float(mean_quality.max() - mean_quality.min()), 0.02) / gap
    steps = min(max(WORK // lists, LEAST_PRICES), MOST_PRICES)
    return [0.0, *(slope * np.geomspace(0.03, 30, steps)).tolist()]


def _tuned(rows: _Rows, models: tuple[int, ...], price: float) -> tuple[float, Cascade]:
    """The best bounds of a list at a price, and its mean value."""
    pairs = list(pairwise(models))
    kept = [rows.quality[:, a].astype(np.float32) for a in models]
    paid = [(price * (rows.cost[:, a] + rows.judging[:, a])).astype(np.float32) for a in models]
    paid[-1] = (price * rows.cost[:, models[-1]]).astype(np.float32)
    chosen = [0] * len(pairs)
    everyone = np.ones(len(rows.quality), dtype=np.float32)
    for sweep in range(1 + SWEEPS * (len(pairs) > 1)):
        after = kept[-1] - paid[-1]
        reach = _reached(rows, pairs, chosen) if sweep else [everyone] * len(pairs)
        for place in range(len(pairs) - 1, -1, -1):
            goes = rows.goes[pairs[place]]
            gain = goes @ (reach[place] * (after - kept[place]))
            chosen[place] = int(gain.argmax())
            went = goes[chosen[place]]
            after = went * after + (1 - went) * kept[place] - paid[place]
        if not pairs:
            break
    value = float((kept[-1] - paid[-1]).mean()) if not pairs else float(after.mean())
    bounds = tuple(rows.bounds[pair][at] for pair, at in zip(pairs, chosen, strict=True))
    return value, Cascade(models, bounds)


def _reached(
    rows: _Rows, pairs: Sequence[tuple[int, int]], chosen: Sequence[int]
) -> list[npt.NDArray[np.float32]]:
    """For each place (N,) 1 where a query comes that far."""
    reach = [np.ones(len(rows.quality), dtype=np.float32)]
    for pair, at in zip(pairs[:-1], chosen[:-1], strict=True):
        reach.append(reach[-1] * rows.goes[pair][at])
    return reach


def _sweep(rows: _Rows, found: Sequence[Cascade], order: Sequence[int]) -> list[Cascade]:
    """All bounds of the pair that was found most often, and each end of the pool alone."""
    pairs = [cascade.models for cascade in found if len(cascade.models) == 2]
    swept = [Cascade((m,), ()) for m in order]
    if pairs:
        pair = max(sorted(set(pairs)), key=pairs.count)
        swept += [Cascade(pair, (bounds,)) for bounds in rows.bounds[pair[0], pair[1]]]
    return swept


def _worth_a_look(rows: _Rows, found: Sequence[Cascade]) -> list[Cascade]:
    """Those hardly below the best for their cost, the dearest first, thinned."""
    means = [_means(rows, cascade) for cascade in found]
    ranked = sorted(range(len(found)), key=lambda at: (means[at][1], -means[at][0]))
    kept, best = [], -np.inf
    for at in ranked:
        if means[at][0] >= best - SLACK:
            kept.append(at)
        best = max(best, means[at][0])
    dearest = max(range(len(found)), key=lambda at: (len(found[at].models) == 1, means[at][1]))
    kept = [dearest, *(at for at in reversed(kept) if at != dearest)]
    places = thinned([means[at][1] for at in kept], MOST_SETTINGS)
    return [found[kept[place]] for place in places]


def _means(rows: _Rows, cascade: Cascade) -> tuple[float, float]:
    """Mean quality and mean cost of a cascade, judging included."""
    models = cascade.models
    pairs = list(pairwise(models))
    chosen = [rows.bounds[pair].index(b) for pair, b in zip(pairs, cascade.bounds, strict=True)]
    here = np.ones(len(rows.quality))
    quality, cost = np.zeros(len(here)), np.zeros(len(here))
    for place, model in enumerate(models):
        cost += here * rows.cost[:, model]
        if place == len(models) - 1:
            quality += here * rows.quality[:, model]
            break
        cost += here * rows.judging[:, model]
        went = here * rows.goes[pairs[place]][chosen[place]]
        quality += (here - went) * rows.quality[:, model]
        here = went
    return float(quality.mean()), float(cost.mean())
