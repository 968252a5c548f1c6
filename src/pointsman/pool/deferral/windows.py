"""A window of scores around a decision: what lies inside goes on, what lies outside stays.

Xia & Bouganis, "Window-Based Early-Exit Cascades for Uncertainty Estimation" (2023, arXiv
2303.08010).
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor


def window_bounds(
    scores: "npt.NDArray[Any] | Tensor", quantile: float, width: float
) -> tuple[float, float]:
    """The window of scores that are passed on; both bounds belong to it.

    A bound beyond the lowest or the highest score is infinite, so that a width of 1 passes on
    scores that were never seen, too; a width of 0 passes on nobody (both bounds are +inf).

    Args:
        scores: (N,) of the first member on held-out inputs, higher is surer.
        quantile: of the decision's threshold among them: 1 less the coverage.
        width: share of the inputs on either side, in [0, 1].
    """
    if width == 0:
        return math.inf, math.inf
    low, high = quantile - width, quantile + width
    held_out = np.asarray(scores, dtype=np.float64)
    return (
        float(np.quantile(held_out, low)) if low > 0 else -math.inf,
        float(np.quantile(held_out, high)) if high < 1 else math.inf,
    )
