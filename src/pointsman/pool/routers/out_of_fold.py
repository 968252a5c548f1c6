"""What routers say of queries that they were not fitted on.

Legend: N queries, M models, K parts.
"""

import copy
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.router import Array, Router


def parts_by_content(features: Features, parts: int) -> npt.NDArray[np.int64]:
    """(N,) a part for each query, found from its features: equal ones share a part.

    The parts hold equally many different queries and do not depend on the order of the rows.
    """
    rows = np.concatenate([features.dense, features.length[:, None]], axis=1).astype("<f4") + 0.0
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    number = np.frombuffer(b"".join(digests), dtype="<u8")
    different = np.unique(number, return_inverse=True)[1].reshape(-1)
    part: npt.NDArray[np.int64] = different.astype(np.int64) % parts
    return part


def out_of_fold(
    router: Any, features: Features, quality: Array, cost: Array, part: npt.NDArray[np.int64]
) -> Array:
    """(N, M) expected qualities of each query by a router fitted on the other parts.

    Args:
        router: is copied, never fitted itself.
        features: of N queries.
        quality: (N, M), NaN where unknown.
        cost: (N, M)
        part: (N,) as `parts_by_content` gives it.

    Raises:
        InputError: without one of the parts a model has no scored query.
    """
    expected = np.empty(quality.shape)
    for number in np.unique(part):
        out = part == number
        known = ~np.isnan(quality[~out])
        if not known.any(axis=0).all() or not (~np.isnan(cost[~out])).any(axis=0).all():
            raise InputError(
                f"model number {int((~known.any(axis=0)).argmax())} has too few scored queries to "
                "hold some of them out: leave it out, or use a router that holds none out"
            )
        fitted: Router = copy.deepcopy(router).fit(features.take(~out), quality[~out], cost[~out])
        expected[out] = fitted.predict(features.take(out)).quality
    return expected
