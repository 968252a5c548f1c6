"""Settings of a cascade over a log by published rules, where `Chain` itself searches for the best.

Two rules that `pool.Cascade` and the window cascade follow on classifiers, for a log that holds a
confidence of each answer. They choose a threshold for one model at a time, from one number that a
user understands, and need not look at costs:

- an allowed loss of quality (Berestizshevsky & Even 2018, "Dynamically Sacrificing Accuracy for
  Reduced Computation", arXiv 1805.10982): the least threshold above which a model's answers are
  within epsilon of its best;
- a window around the threshold of an accept-or-reject decision (Xia & Bouganis 2023, "Window-Based
  Early-Exit Cascades for Uncertainty Estimation", arXiv 2303.08010).

Legend: N queries, L models of the cascade.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.deferral.rules import ALWAYS, NEVER, Bounds, require_signal
from pointsman.pool.deferral.windows import window_bounds
from pointsman.pool.log import Log
from pointsman.pool.strategies.strategy import Setting
from pointsman.run.accuracy import accuracy_curve, least_threshold

EPSILONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
WIDTHS = (0.3, 0.2, 0.1, 0.05, 0.0)


def allowed_loss(
    log: Log,
    signal: str,
    *,
    models: Sequence[int] | None = None,
    epsilons: Sequence[float] = EPSILONS,
    min_count: int = 20,
) -> tuple[Setting, ...]:
    """Settings for `Chain(signal)`: each model keeps answers at least as sure as its threshold.

    Args:
        log: held-out queries; a cell without signal or quality is left out.
        signal: name in the log.
        models: L columns in the order of asking; None: all, in ascending mean cost.
        epsilons: allowed losses, from the safest on.
        min_count: fewest answers that a quality may rest on; with fewer, a model is always passed
            over, but for an epsilon of 1.

    Returns:
        A setting for each epsilon, with knobs such as "epsilon=0.02".

    Raises:
        InputError: the log does not have the signal, or models that are none of its columns.
    """
    cells, order = require_signal(log, signal), _order(log, models)
    curves = []
    for model in order[:-1]:
        known = np.isfinite(cells[:, model]) & np.isfinite(log.quality[:, model])
        # The rule is about right answers; qualities between 0 and 1 add up as well.
        right: npt.NDArray[Any] = log.quality[known, model]
        curves.append(accuracy_curve(cells[known, model], right, min_count))
    return tuple(
        _setting(
            f"epsilon={epsilon:g}",
            order,
            [_below(least_threshold(*curve, epsilon)) for curve in curves],
        )
        for epsilon in epsilons
    )


def around_decision(
    log: Log,
    signal: str,
    *,
    coverage: float,
    models: Sequence[int] | None = None,
    widths: Sequence[float] = WIDTHS,
) -> tuple[Setting, ...]:
    """Settings for `Chain(signal)`: only answers near the threshold of rejection are passed over.

    Where a share of the queries is answered and the others rejected, those far from the threshold
    stay on their side whatever another model says. A width of 1 passes everything over and is the
    last model, one of 0 passes nothing.

    Args:
        log: held-out queries.
        signal: name in the log.
        coverage: share of the queries that is to be answered, in (0, 1).
        models: as in `allowed_loss`.
        widths: shares of the queries on either side of the threshold, from the dearest on.

    Raises:
        InputError: as in `allowed_loss`, or a coverage or a width that is no such share.
    """
    if not 0 < coverage < 1 or not all(0 <= width <= 1 for width in widths):
        raise InputError(
            f"coverage lies in (0, 1) and widths in [0, 1], got {coverage} and {tuple(widths)}"
        )
    cells, order = require_signal(log, signal), _order(log, models)
    known = [cells[np.isfinite(cells[:, model]), model] for model in order[:-1]]
    return tuple(
        _setting(
            f"coverage={coverage:g} width={width:g}",
            order,
            [_window(*window_bounds(scores, 1 - coverage, width)) for scores in known],
        )
        for width in widths
    )


def _order(log: Log, models: Sequence[int] | None) -> list[int]:
    if models is None:
        return [int(model) for model in np.argsort(log.mean_cost(), kind="stable")]
    if not models or not set(models) <= set(range(len(log.models))):
        raise InputError(
            f"models are columns of the log, 0 to {len(log.models) - 1}, got {list(models)}"
        )
    return list(models)


def _setting(knob: str, models: list[int], bounds: Sequence[Bounds]) -> Setting:
    """As `Chain` reads it."""
    low, high = [each.low for each in bounds], [each.high for each in bounds]
    return Setting(knob, {"models": models, "low": low, "high": high})


def _below(threshold: float) -> Bounds:
    """Less sure than the threshold goes on."""
    if np.isinf(threshold):
        return ALWAYS if threshold > 0 else NEVER
    return Bounds(None, threshold)


def _window(low: float, high: float) -> Bounds:
    """Both bounds belong to a window, while a rule's upper bound does not belong to it."""
    if low == np.inf:
        return NEVER
    return Bounds(
        None if low == -np.inf else low,
        None if high == np.inf else float(np.nextafter(high, np.inf)),
    )
