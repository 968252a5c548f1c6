"""A truncated singular value decomposition of a sparse matrix, the same at every run.

Legend: N texts, V n-grams, C components.
"""

from typing import Any

import numpy as np

from pointsman.pool.features.features import Dense


def directions(matrix_NV: Any, components: int) -> Dense:
    """(V, C) first right singular vectors; with fewer texts or n-grams than C, zeros follow.

    Randomised (Halko et al. 2011, 0909.4061) with a fixed seed; signs are fixed too.
    """
    from sklearn.utils.extmath import randomized_svd

    n, size = matrix_NV.shape
    kept = min(components, n, size)
    found = np.zeros((size, components), dtype=np.float32)
    if kept:
        _, _, right = randomized_svd(matrix_NV, kept, n_iter=2, random_state=0)
        found[:, :kept] = right.T
    return found
