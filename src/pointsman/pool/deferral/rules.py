"""Rules of a cascade over a log: from a signal to a score, and the bounds inside which one goes on.

A model's answer is passed over, and the next model asked, iff low <= score < high. What a rule
scores and which bounds are worth a look is all that differs between confidence, windows and learned
deferral.

Legend: N queries, M models, K knots, B bounds.
"""

from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.deferral.windows import window_bounds
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain

Array = npt.NDArray[np.float64]
KNOTS, RIDGE = 4, 2.0


class Bounds(NamedTuple):
    """Scores that go on: low <= score < high; None: no bound on that side."""

    low: float | None
    high: float | None

    def inside(self, score: Array) -> npt.NDArray[np.bool_]:
        """(N,) bool: goes on. A score of -inf is inside exactly where there is no low bound."""
        above = np.full(score.shape, True) if self.low is None else score >= self.low
        return above if self.high is None else above & (score < self.high)


class Rule(Protocol):
    """What reads a signal for a cascade.

    Attributes:
        signal: name in the log.
        title: for people.
    """

    signal: str
    title: str

    def fit(self, log: Log, prediction: Prediction) -> Self:
        """Learn from the training part, with predictions made without having seen its rows."""
        ...

    def score(self, model: int, following: int, signal: Array, prediction: Prediction) -> Array:
        """(N,) score of answers of `model` with `following` to be asked next, low goes on.

        A signal that is missing (NaN) counts as the least sure.
        """
        ...

    def bounds(self, score: Array) -> list[Bounds]:
        """Bounds worth a look, given held-out scores (N,); from going on never to always."""
        ...


class Confidence:
    """The usual cascade: go on while the signal is below a threshold (Chow 1970).

    Args:
        signal: name in the log.
        thresholds: most thresholds tried for each model.
    """

    def __init__(self, signal: str, thresholds: int = 24) -> None:
        self.signal = signal
        self.thresholds = thresholds
        self.title = signal

    def fit(self, log: Log, prediction: Prediction) -> Self:
        """Nothing to learn; the log must have the signal.

        Raises:
            InputError: it does not.
        """
        require_signal(log, self.signal)
        return self

    def score(self, model: int, following: int, signal: Array, prediction: Prediction) -> Array:
        """The signal itself."""
        return np.where(np.isnan(signal), -np.inf, signal)

    def bounds(self, score: Array) -> list[Bounds]:
        """Thresholds between equal shares of the scores."""
        return thresholds_between(score, self.thresholds)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords."""
        return {"signal": self.signal, "thresholds": self.thresholds}, {}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same rule again."""
        return cls(str(plain["signal"]), int(plain["thresholds"]))


class Window:
    """Go on only inside a window of the signal: below it the next model fails as well.

    The bounds are those of `window_bounds` (arXiv 2303.08010), around several quantiles and with
    several widths; where the window reaches the lowest score it has no low bound, and the rule is
    that of confidence. An answer without a signal lies below every bounded window, and is kept.

    Args:
        signal: name in the log.
    """

    quantiles = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75)
    widths = (0.05, 0.1, 0.2, 0.3)

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.title = f"window of {signal}"

    def fit(self, log: Log, prediction: Prediction) -> Self:
        """Nothing to learn; the log must have the signal.

        Raises:
            InputError: it does not.
        """
        require_signal(log, self.signal)
        return self

    def score(self, model: int, following: int, signal: Array, prediction: Prediction) -> Array:
        """The signal itself."""
        return np.where(np.isnan(signal), -np.inf, signal)

    def bounds(self, score: Array) -> list[Bounds]:
        """Windows from none to all."""
        known = score[np.isfinite(score)]
        found = [NEVER]
        if len(known):
            for width in self.widths:
                for quantile in self.quantiles:
                    low, high = window_bounds(known, quantile, width)
                    # window_bounds includes its upper bound, a rule does not
                    found.append(
                        Bounds(
                            None if low == -np.inf else low,
                            None if high == np.inf else float(np.nextafter(high, np.inf)),
                        )
                    )
        found.append(ALWAYS)
        return list(dict.fromkeys(found))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords."""
        return {"signal": self.signal}, {}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same rule again."""
        return cls(str(plain["signal"]))


class Gain:
    """Learned deferral: go on where the next model is expected to gain enough.

    For every ordered pair of models the difference of their qualities is regressed (ridge) on the
    signal of the first, bent at the quantiles of the training part, and on the predicted quality of
    both: the Diff-01 rule of Jitkrittum et al. 2023 (arXiv 2307.02764) for what a log knows of an
    answer, see `LearnedDeferral` for classifiers. It can fall where the signal rises, which a
    threshold on the signal cannot follow. The score is minus the gain, so that low goes on.

    Args:
        signal: name in the log.
        thresholds: most thresholds tried for each pair.

    Attributes:
        knots_: (M, K) signals at which the regression bends.
        lowest_: (M,) least sure signal seen, which a missing one is taken for.
        weights_: (M, M, K + 4): for the pair (asked, next) those of 1, the signal, its bends, the
            predicted quality of the asked and of the next.
    """

    def __init__(self, signal: str, thresholds: int = 24) -> None:
        self.signal = signal
        self.thresholds = thresholds
        self.title = f"learned from {signal}"

    def fit(self, log: Log, prediction: Prediction) -> Self:
        """Learn from the rows where both models and the signal are known.

        Raises:
            InputError: the log does not have the signal.
        """
        signal, models = require_signal(log, self.signal), len(log.models)
        self.knots_ = np.zeros((models, KNOTS))
        self.lowest_ = np.zeros(models)
        self.weights_ = np.zeros((models, models, KNOTS + 4))
        for a in range(models):
            known = signal[:, a][np.isfinite(signal[:, a])]
            if len(known) == 0:
                continue
            self.lowest_[a] = known.min()
            self.knots_[a] = np.quantile(known, np.arange(1, KNOTS + 1) / (KNOTS + 1))
            columns = self._columns(a, signal[:, a])
            for b in range(models):
                if b != a:
                    self.weights_[a, b] = _ridge(
                        [*columns, prediction.quality[:, a], prediction.quality[:, b]],
                        log.quality[:, b] - log.quality[:, a],
                        np.isfinite(signal[:, a]),
                    )
        return self

    def score(self, model: int, following: int, signal: Array, prediction: Prediction) -> Array:
        """Minus the expected gain of asking the next model."""
        columns = [
            *self._columns(model, signal),
            prediction.quality[:, model],
            prediction.quality[:, following],
        ]
        gain = np.zeros(len(signal))
        # one term after the other: a matrix product rounds differently for one row and for many
        for weight, column in zip(self.weights_[model, following], columns, strict=True):
            gain = gain + weight * column
        return -gain

    def bounds(self, score: Array) -> list[Bounds]:
        """Thresholds between equal shares of the scores."""
        return thresholds_between(score, self.thresholds)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords, and the regressions."""
        plain = {"signal": self.signal, "thresholds": self.thresholds}
        return plain, {
            "knots": self.knots_,
            "lowest": self.lowest_,
            "weights": self.weights_,
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same rule again."""
        rule = cls(str(plain["signal"]), int(plain["thresholds"]))
        rule.knots_ = np.asarray(arrays["knots"])
        rule.lowest_ = np.asarray(arrays["lowest"])
        rule.weights_ = np.asarray(arrays["weights"])
        return rule

    def _columns(self, model: int, signal: Array) -> list[Array]:
        s = np.where(np.isnan(signal), self.lowest_[model], signal)
        bends = [np.maximum(s - knot, 0.0) for knot in self.knots_[model]]
        return [np.ones(len(s)), s, *bends]


NEVER, ALWAYS = Bounds(None, float(np.finfo(np.float64).min)), Bounds(None, None)


def thresholds_between(score: Array, most: int) -> list[Bounds]:
    """At most `most` thresholds, half-way between scores that were seen, and the two ends.

    NEVER keeps every answer that has a score at all; only a missing signal (-inf) still goes on.
    """
    values = np.unique(score[np.isfinite(score)])
    halves = values[:-1] + np.diff(values) / 2
    if len(halves) > most:
        ranked = np.sort(score[np.isfinite(score)])
        shares = np.arange(1, most + 1) / (most + 1)
        wanted = ranked[(shares * len(ranked)).astype(int)]
        places = np.clip(np.searchsorted(values, wanted) - 1, 0, len(halves) - 1)
        halves = halves[np.unique(places)]
    return [NEVER, *(Bounds(None, float(half)) for half in halves), ALWAYS]


def require_signal(log: Log, signal: str) -> Array:
    """The signal of a log.

    Raises:
        InputError: there is none of that name.
    """
    if signal not in log.signals:
        known = ", ".join(log.signals) or "none"
        raise InputError(f"{log.name} has no signal {signal!r}: its signals are {known}")
    cells: Array = log.signals[signal]
    return cells


def _ridge(columns: list[Array], target: Array, known: npt.NDArray[np.bool_]) -> Array:
    """Weights of the columns, the first of which is 1; standardised, and drawn towards the mean."""
    x = np.stack(columns, axis=1)
    rows = known & np.isfinite(target) & np.isfinite(x).all(axis=1)
    weights = np.zeros(len(columns))
    if not rows.any():
        return weights
    x, y = x[rows, 1:], target[rows]
    middle, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12, scale, np.inf)  # a constant column tells nothing
    z = (x - middle) / scale
    solved = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    weights[1:] = solved / scale
    weights[0] = y.mean() - weights[1:] @ middle
    return weights
