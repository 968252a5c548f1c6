"""What the signals of some answers tell about the quality of every model on the same query.

A router's prediction is the prior. With m a model, q̂ its predicted quality, y its true one and s
the signal of its answer,

    r_m = y_m - q̂_m                           what the router missed
    u_m = calibrated(s_m)                     what the signal alone lets expect (isotonic)
    e_m = u_m - (alpha_m + beta_m q̂_m)        the news in the signal: what q̂ did not tell already

r and e are taken as jointly Gaussian with mean zero. Their covariances come from a log; for the
models A that have answered,

    E[y | e_A] = q̂ + Cov(r, e_A) Cov(e_A)^-1 e_A

so that an unsure cheap answer also lowers what is expected of the dear models on this query. How
far the answer of a further model b would move these expectations is known before b is asked, which
is what the value of asking rests on.

Legend: N queries, M models, A models that answered, B further models, J nodes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.deferral.calibration import Monotone
from pointsman.pool.saving import Arrays, Plain, inside, nested

Array = npt.NDArray[np.float64]
NODES = 9
PRIOR_ROWS = 20  # a covariance from n rows counts n / (n + PRIOR_ROWS) of itself
NOISE = 0.02  # share of its variance that no news is free of: keeps the inverse finite
LEAST_VARIANCE = 1e-9


class Moves(NamedTuple):
    """How expectations move when one more model has answered.

    Args:
        gain: (M, A) weight of each piece of news in the expectation of each model.
        slope: (M, M) for a further model b (row) how much one standard deviation of its news moves
            the expectation of each model (column); zero rows for those that have answered.
        tells: (B,) further models whose news moves anything.
        shifts: (B, M, J) how their news moves each expectation, at each node of the news.
    """

    gain: Array
    slope: Array
    tells: npt.NDArray[np.int64]
    shifts: Array


class Beliefs:
    """Joint beliefs about the qualities of all models, updated by the signals of their answers.

    Pairs of models that were never asked about the same query are taken as unrelated. A signal that
    is missing counts as the least sure one.

    Attributes:
        calibrated_: a `Monotone` for each model.
        line_: (M, 2) alpha and beta.
        shared_: (M, M) Cov(r_m, e_k) in row m, column k.
        news_: (M, M) Cov(e_j, e_k); an entry of the diagonal is 0 where a model's signal tells
            nothing or is not known.
        nodes_: (M, J) quantiles of the standardised news of each model, of mean 0 and variance 1:
            signals are skewed, and the Gaussian is only used for what is linear.
    """

    def fit(self, quality: Array, predicted: Array, signal: Array) -> Self:
        """Learn from predictions of queries that the router had not seen.

        Args:
            quality: (N, M), NaN where not known.
            predicted: (N, M), NaN in rows that are not to be learned from.
            signal: (N, M), NaN where not known.
        """
        models = quality.shape[1]
        self.calibrated_ = [Monotone().fit(signal[:, m], quality[:, m]) for m in range(models)]
        self.line_ = np.zeros((models, 2))
        news = np.full(signal.shape, np.nan)
        for m in range(models):
            expected = self.calibrated_[m].predict(signal[:, m])
            known = np.isfinite(signal[:, m]) & np.isfinite(expected + predicted[:, m])
            if known.any():
                self.line_[m] = _line(predicted[known, m], expected[known])
                line = self.line_[m, 0] + self.line_[m, 1] * predicted[:, m]
                news[:, m] = np.where(known, expected - line, np.nan)
        missed = quality - predicted
        missed = missed - np.nan_to_num(_mean(missed))
        self.shared_ = _covariance(missed, news)
        self.news_ = _covariance(news, news)
        self.nodes_ = np.stack([_nodes(news[:, m]) for m in range(models)])
        self._known: dict[tuple[int, ...], Moves] = {}
        return self

    def evidence(self, model: int, signal: Array, predicted: Array) -> Array:
        """(N,) news in the signal (N,) of a model's answers; predicted is (N, M)."""
        if self.news_[model, model] <= LEAST_VARIANCE:
            return np.zeros(len(signal))
        expected = self.calibrated_[model].predict(signal)
        alpha, beta = self.line_[model]
        found: Array = expected - (alpha + beta * predicted[:, model])
        return found

    def expected(self, asked: Sequence[int], evidence: Sequence[Array], predicted: Array) -> Array:
        """(N, M) quality expected of every model, given the news (N,) of each that answered."""
        gain, found = self.moves(asked).gain, predicted
        # one piece of news after the other: a matrix product rounds differently for a single row
        for place, news in enumerate(evidence):
            found = found + news[:, None] * gain[:, place]
        return found

    def moves(self, asked: Sequence[int]) -> Moves:
        """What the news of models that answered weighs, and what further news would move."""
        key = tuple(asked)
        if key not in self._known:
            self._known[key] = self._moves(list(key))
        return self._known[key]

    def _moves(self, asked: list[int]) -> Moves:
        models = len(self.news_)
        own = np.diag(self.news_)
        noisy = self.news_ + np.diag(NOISE * own + (own <= LEAST_VARIANCE))
        inverse = np.linalg.inv(noisy[np.ix_(asked, asked)])
        gain = self.shared_[:, asked] @ inverse
        slope = np.zeros((models, models))
        for b in range(models):
            if b in asked or own[b] <= LEAST_VARIANCE:
                continue
            weights = inverse @ noisy[asked, b]
            left = max(noisy[b, b] - noisy[b, asked] @ weights, NOISE * own[b])
            slope[b] = (self.shared_[:, b] - self.shared_[:, asked] @ weights) / np.sqrt(left)
        moved = (np.abs(slope).max(axis=1) > 0) & (np.abs(self.nodes_).max(axis=1) > 0)
        tells = np.flatnonzero(moved)
        shifts = slope[tells][:, :, None] * self.nodes_[tells][:, None, :]
        return Moves(gain, slope, tells, shifts)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Everything learned."""
        plain, arrays = nested({str(m): part.to_state() for m, part in enumerate(self.calibrated_)})
        own = {"line": self.line_, "shared": self.shared_, "news": self.news_}
        return {"calibrated": plain}, {**arrays, **own, "nodes": self.nodes_}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same beliefs again."""
        beliefs = cls()
        calibrated = plain["calibrated"]
        beliefs.calibrated_ = [
            Monotone.from_state(calibrated[str(m)], inside(str(m), arrays))
            for m in range(len(calibrated))
        ]
        beliefs.line_, beliefs.shared_ = np.asarray(arrays["line"]), np.asarray(arrays["shared"])
        beliefs.news_, beliefs.nodes_ = np.asarray(arrays["news"]), np.asarray(arrays["nodes"])
        beliefs._known = {}
        return beliefs


def _line(x: Array, y: Array) -> Array:
    """Least squares (alpha, beta); beta is 0 where x does not vary."""
    spread = float(((x - x.mean()) ** 2).mean())
    beta = float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread > 1e-9 else 0.0
    return np.array([float(y.mean()) - beta * float(x.mean()), beta])


def _mean(cells: Array) -> Array:
    """(M,) means of the known cells; NaN where none is known."""
    known = np.isfinite(cells)
    count = known.sum(axis=0)
    total = np.where(known, cells, 0.0).sum(axis=0)
    mean: Array = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _covariance(left: Array, right: Array) -> Array:
    """(M, M) covariances over the rows where both are known, drawn towards zero where few are."""
    a, b = np.isfinite(left), np.isfinite(right)
    count = a.T.astype(np.float64) @ b.astype(np.float64)
    total = np.where(a, left, 0.0).T @ np.where(b, right, 0.0)
    covariance: Array = total / (count + PRIOR_ROWS)
    return covariance


def _nodes(news: Array) -> Array:
    known = news[np.isfinite(news)]
    if len(known) < NODES or known.std() <= LEAST_VARIANCE:
        return np.zeros(NODES)
    found = np.quantile(known, (np.arange(NODES) + 0.5) / NODES)
    spread = found.std()
    if spread <= LEAST_VARIANCE:
        return np.zeros(NODES)
    standard: Array = (found - found.mean()) / spread
    return standard
