"""The four parts of a log: equal queries stay together, and promises are made on complete rows."""

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.log import Log

PARTS = ("train", "validation", "calibration", "test")
# Of n rows, the lesser of share * n and some + more * n leaves. Routers learn from a few thousand
# queries what they can, while a promise of one point needs every calibration query it can get.
SHARES = {
    "test": (0.2, 500, 0.12),
    "calibration": (0.35, 700, 0.22),
    "validation": (0.2, 400, 0.08),
}
LEAST_ROWS = 100


def split_log(log: Log, seed: int = 0) -> dict[str, Log]:
    """Train, validation, calibration and test parts, which share no query.

    Queries with equal `Log.identity` go to one part. Validation, calibration and test hold only
    queries for which every model's quality and cost is known (where they repeat, each time); all
    others are in the training part.

    Args:
        log: to split.
        seed: of the draw.

    Raises:
        InputError: fewer than 100 different queries, or than 100 complete ones.
    """
    identity = log.identity()
    different = int(identity.max()) + 1
    if different < LEAST_ROWS:
        rows = "" if different == len(log) else f" in {len(log)} rows"
        raise InputError(
            f"{log.name}: compare needs at least {LEAST_ROWS} different queries to train, "
            f"validate, calibrate and test on different ones, found {different}{rows}: bring more"
        )
    whole = np.ones(different, dtype=bool)
    whole[identity[~log.complete()]] = False
    _check_complete(log, int(whole.sum()))
    rows_of = np.bincount(identity, minlength=different)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(whole))
    part_of = np.zeros(different, dtype=np.int64)  # the training part, unless drawn for another
    rest = int(rows_of[order].sum())
    for name, (share, some, more) in SHARES.items():
        size = round(min(share * rest, some + more * rest))
        # Whole queries, until the part is as large as it should be.
        count = int(np.searchsorted(np.cumsum(rows_of[order]), size)) + 1
        drawn, order = order[:count], order[count:]
        part_of[drawn] = PARTS.index(name)
        rest -= int(rows_of[drawn].sum())
    at = part_of[identity]
    return {name: log.take(np.flatnonzero(at == number)) for number, name in enumerate(PARTS)}


def _check_complete(log: Log, complete: int) -> None:
    if complete >= LEAST_ROWS:
        return
    known = ~(np.isnan(log.quality) | np.isnan(log.cost))
    worst = int(known.sum(axis=0).argmin())
    found = "none was" if complete == 0 else f"only {complete} were"
    raise InputError(
        f"{log.name}: at least {LEAST_ROWS} queries must be scored and priced for every model, "
        f"{found}: {log.models[worst]!r} has the fewest ({int(known[:, worst].sum())} of "
        f"{len(log)}): leave such models out with --models, or fill in their cells"
    )
