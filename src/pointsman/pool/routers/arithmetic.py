"""Sums that come out the same to the last bit whatever the batch.

Matrix products of the linear algebra libraries may add in another order at the edge of a block, so
that equal queries, or equal models, differ in the last bit and ties between them are broken by
position. Here each result is a sum of its own along contiguous memory.

Legend: N queries, M models, D features.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_PRODUCTS_AT_ONCE = 1 << 19  # what fits a processor's cache


def dot(x_ND: Array, w_MD: Array) -> Array:
    """(N, M) products of each query with each model's weights."""
    result = np.empty((len(x_ND), len(w_MD)))
    step = max(1, _PRODUCTS_AT_ONCE // max(1, w_MD.size))
    weights = np.ascontiguousarray(w_MD, dtype=np.float64)[None]
    for start in range(0, len(x_ND), step):
        rows = np.ascontiguousarray(x_ND[start : start + step])[:, None]
        result[start : start + step] = (rows * weights).sum(axis=-1)
    return result
