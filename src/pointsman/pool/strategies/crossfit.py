"""Predictions of training rows by routers that have not seen them.

What is learned on top of a prediction (how much a signal adds to it) must not be learned from
predictions of rows that the router was trained on, which look better than those of new queries.
"""

import copy
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction

FOLDS = 4
ALL_FOLDS = 8_000  # rows; of longer logs one fold is enough to learn from, and only it is predicted


def unseen(router: Any, log: Log, features: Features, folds: int = FOLDS) -> Prediction:
    """The prediction of every row by a copy of the router that was fitted on the other folds.

    Equal queries share a fold, and the fold hangs on the text alone, so the order of the rows
    changes nothing. Where a fold's complement would leave a model without any score, its rows keep
    the prediction of a router fitted on everything. Of a long log only the first fold is predicted,
    which takes one fit; its other rows are NaN.

    Args:
        router: copied for each fold.
        log: (N, M) training rows.
        features: of the same rows.
        folds: how many parts.
    """
    place = fold_of(log, folds)
    quality, cost = np.full(log.quality.shape, np.nan), np.full(log.cost.shape, np.nan)
    for fold in range(folds if len(log) <= ALL_FOLDS else 1):
        mine, others = place == fold, place != fold
        if not mine.any():
            continue
        if np.isnan(log.quality[others]).all(axis=0).any():
            others = np.ones(len(log), dtype=bool)
        fitted = copy.deepcopy(router).fit(
            features.take(others), log.quality[others], log.cost[others]
        )
        found = fitted.predict(features.take(mine))
        quality[mine], cost[mine] = found.quality, found.cost
    return Prediction(quality, cost)


def fold_of(log: Log, folds: int) -> npt.NDArray[np.int64]:
    """(N,) fold of each query, by its text; queries that count as equal go together."""
    digest = np.array([zlib.crc32(str(query).encode()) for query in log.queries], dtype=np.int64)
    identity = log.identity()
    least = np.full(int(identity.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, identity, digest)
    fold: npt.NDArray[np.int64] = least[identity] % folds
    return fold
