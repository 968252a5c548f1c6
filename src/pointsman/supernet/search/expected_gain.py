"""How much a candidate is expected to add to the hypervolume, given that its cost is known.

The expected hypervolume improvement (Emmerich et al. 2006, IEEE Transactions on Evolutionary
Computation 10(4)) of two objectives that are both uncertain needs an integral over both. Here one
of them, the cost, is exact, and what is left is a sum over the steps of the front to the right of
the candidate: the width of the step times the expected improvement over its height.

Legend: M candidates, K steps of the front.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

NEGLIGIBLE = -5.0  # standard deviations below a step from which on it is left out


def expected_gain(
    mean_M: Array,
    spread_M: Array,
    cost_M: Array,
    front_K2: Array,
    *,
    cost: float,
    quality: float,
) -> Array:
    """(M,) expected growth of the hypervolume by each candidate alone, in cost times quality.

    Args:
        mean_M: of the candidates' quality.
        spread_M: its standard deviations, above 0.
        cost_M: exact.
        front_K2: cost and quality of the front so far, by rising cost; may be empty.
        cost: of the reference point; a candidate beyond it gains nothing.
        quality: of the reference point.
    """
    from scipy.special import ndtr

    edges = [-np.inf, *front_K2[:, 0], cost]
    levels = [quality, *front_K2[:, 1]]
    gain_M = np.zeros(len(mean_M))
    for left, right, level in zip(edges[:-1], edges[1:], levels, strict=True):
        width_M = np.clip(right - np.maximum(cost_M, left), 0, None)
        over_M = (mean_M - level) / spread_M
        on = np.flatnonzero((width_M > 0) & (over_M > NEGLIGIBLE))
        z = over_M[on]
        better = z * ndtr(z) + np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        gain_M[on] += width_M[on] * spread_M[on] * better
    return gain_M
