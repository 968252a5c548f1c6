"""A Gaussian process for the quality of genotypes, made for being asked after every evaluation.

Its kernel is exp(-|x - x'|_1 / l - |c - c'| / m): x are coordinates of a genotype (see
`coordinates`), c is the logarithm of its cost, which is known exactly, so that networks of like
size are taken to be alike before anything else is. l, m and the share of the variance that no
neighbour shares are those of a small grid with the highest marginal likelihood (Rasmussen and
Williams 2006, equation 5.8; the mean and the scale are integrated or solved in closed form). One
more observation costs a product of a vector and a matrix, not a new fit.

scikit-learn has Gaussian processes too; this one exists because a search fits one for each of a few
hundred evaluations and may not spend seconds on it.

Legend: N observations, M candidates, D coordinates.
"""

from itertools import product
from typing import Any, Self

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.space import Space

Array = np.ndarray[Any, np.dtype[np.float64]]

LENGTHS = (2.0, 6.0, 18.0)  # of the coordinates
COST_LENGTHS = (0.5, 1.5, 5.0)  # in ranges of the logarithm of the cost
NUGGETS = (0.03, 0.15, 0.6)  # variance of each genotype's own, over the variance that is shared


def coordinates(space: Space, genotypes: Array) -> Array:
    """(N, choices) option indices → (N, D) coordinates.

    A choice among numbers is one coordinate: the rank of its option, from 0 to 1. Any other choice
    has one for each option, of which the taken one is 1/2 and the others 0, so that two options lie
    at a distance of 1.
    """
    columns = []
    for place, choice in enumerate(space.choices):
        size = len(choice.options)
        ordered = all(type(option) in (int, float) for option in choice.options)
        if ordered:
            order = sorted(range(size), key=lambda at: float(choice.options[at]))
            table = np.zeros((size, 1))
            table[order, 0] = np.linspace(0, 1, size)
        else:
            table = np.eye(size) / 2
        columns.append(table[genotypes[:, place].astype(int)])
    return np.concatenate(columns, 1)


def _distances(x_ND: Array, other_MD: Array) -> Array:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(x_ND, other_MD, "cityblock"))


class GaussianProcess:
    """Quality as a function of coordinates and the logarithm of the cost.

    Attributes:
        length_, cost_length_, nugget_: as chosen by `choose`.
        mean_: of the process.
        scale_: variance of the shared part.
    """

    def choose(self, x_ND: Array, c_N1: Array, y_N: Array) -> Self:
        """Set lengths and nugget by the marginal likelihood.

        Raises:
            InputError: no observation, or one that is not a number.
        """
        if len(y_N) == 0 or not np.isfinite(y_N).all():
            raise InputError("a Gaussian process is fitted to numbers, at least one, got others")
        near, alike = _distances(x_ND, x_ND), _distances(c_N1, c_N1)
        best = -np.inf
        for length, cost_length in product(LENGTHS, COST_LENGTHS):
            shared = np.exp(-near / length - alike / cost_length)
            for nugget in NUGGETS:
                likelihood = _likelihood(shared + nugget * np.eye(len(y_N)), y_N)
                if likelihood > best:
                    best = likelihood
                    self.length_, self.cost_length_ = length, cost_length
                    self.nugget_ = nugget
        return self

    def kernel(self, x_ND: Array, c_N1: Array, x_MD: Array, c_M1: Array) -> Array:
        """(N, M) shared part of the covariance, 1 at equal coordinates."""
        return np.asarray(np.exp(-_distances(self._scaled(x_ND, c_N1), self._scaled(x_MD, c_M1))))

    def _scaled(self, x_ND: Array, c_N1: Array) -> Array:
        return np.concatenate([x_ND / self.length_, c_N1 / self.cost_length_], 1)

    def fit(self, x_ND: Array, c_N1: Array, y_N: Array) -> Self:
        """Condition on observations, with the lengths and the nugget as they are."""
        self._x, self._c = x_ND, c_N1
        own = self.nugget_ * np.eye(len(y_N))
        self._root = _root(self.kernel(x_ND, c_N1, x_ND, c_N1) + own)
        ones_N, white_N = _whitened(self._root, y_N)
        self.mean_ = float(ones_N @ white_N / (ones_N @ ones_N))
        self._rest = white_N - self.mean_ * ones_N
        scale = float(self._rest @ self._rest) / len(y_N)
        self.scale_ = scale if scale > 1e-18 else 1.0  # constant so far: any scale serves
        return self

    def roughly_at(self, x_MD: Array, c_M1: Array) -> tuple[Array, Array]:
        """Mean and spread (M,) of very many candidates, in single precision."""
        from scipy.linalg import solve_triangular

        apart_NM = _distances(self._scaled(self._x, self._c), self._scaled(x_MD, c_M1))
        shared_NM = np.exp(-apart_NM.astype(np.float32))
        root_NN = self._root.astype(np.float32)
        taken_NM = solve_triangular(root_NN, shared_NM, lower=True, check_finite=False)
        mean_M = self.mean_ + self._rest.astype(np.float32) @ taken_NM
        shared_M = np.maximum(1 - np.einsum("nm,nm->m", taken_NM, taken_NM), 1e-6)
        return mean_M, np.sqrt(self.scale_ * (shared_M + self.nugget_))

    def at(self, x_MD: Array, c_M1: Array, room: int = 0) -> "Posterior":
        """What is known of candidates, with room for so many further observations of them."""
        from scipy.linalg import solve_triangular

        shared = self.kernel(self._x, self._c, x_MD, c_M1)
        taken_NM = solve_triangular(self._root, shared, lower=True, check_finite=False)
        return Posterior(self, x_MD, c_M1, np.asarray(taken_NM), self._rest, room)


class Posterior:
    """Mean and spread of the quality of M candidates, as observations of them come in.

    Attributes:
        mean: (M,)
        asked: candidates that were asked for.
    """

    def __init__(
        self,
        process: GaussianProcess,
        x_MD: Array,
        c_M1: Array,
        taken_NM: Array,
        rest_N: Array,
        room: int,
    ) -> None:
        self.process, self._x, self._c = process, x_MD, c_M1
        self._count = len(taken_NM)
        self._taken = np.empty((self._count + room, len(x_MD)))
        self._taken[: self._count] = taken_NM
        self._rest = np.concatenate([rest_N, np.zeros(room)])
        self._variance = 1 - np.einsum("nm,nm->m", taken_NM, taken_NM)
        self.mean = process.mean_ + rest_N @ taken_NM
        self.asked: list[int] = []
        self._open: list[tuple[int, float]] = []

    @property
    def spread(self) -> Array:
        """(M,) standard deviation of a candidate's quality, its own part included."""
        variance = np.maximum(self._variance, 1e-9) + self.process.nugget_
        return np.asarray(np.sqrt(self.process.scale_ * variance))

    def ask(self, candidate: int) -> None:
        """This one will be observed: the spread shrinks at once, the mean with the `answer`."""
        here = slice(candidate, candidate + 1)
        shared_M = self.process.kernel(self._x[here], self._c[here], self._x, self._c)[0]
        taken_NM = self._taken[: self._count]
        unit = float(np.sqrt(max(self._variance[candidate], 1e-9) + self.process.nugget_))
        row_M = (shared_M - taken_NM[:, candidate] @ taken_NM) / unit
        self._taken[self._count] = row_M
        self._variance = self._variance - row_M**2
        self._open.append((self._count, unit))
        self._count += 1
        self.asked.append(candidate)

    def answer(self, qualities: list[float]) -> None:
        """Of the candidates asked for since the last answer, in that order."""
        waiting = self.asked[-len(qualities) :]
        for (row, unit), candidate, quality in zip(self._open, waiting, qualities, strict=True):
            self._rest[row] = (quality - self.mean[candidate]) / unit
            self.mean = self.mean + self._rest[row] * self._taken[row]
        self._open = []


def _root(covariance_NN: Array) -> Array:
    return np.asarray(np.linalg.cholesky(covariance_NN), dtype=np.float64)


def _whitened(root_NN: Array, y_N: Array) -> tuple[Array, Array]:
    from scipy.linalg import solve_triangular

    both = np.stack([np.ones(len(y_N)), y_N], 1)
    white_N2 = np.asarray(solve_triangular(root_NN, both, lower=True, check_finite=False))
    return white_N2[:, 0], white_N2[:, 1]


def _likelihood(covariance_NN: Array, y_N: Array) -> float:
    """Logarithm, up to a constant, with the scale at its best and the mean integrated out."""
    root_NN = _root(covariance_NN)
    ones_N, white_N = _whitened(root_NN, y_N)
    weight = float(ones_N @ ones_N)
    rest_N = white_N - ones_N * float(ones_N @ white_N) / weight
    scale = max(float(rest_N @ rest_N) / len(y_N), 1e-18)
    return float(
        -len(y_N) * np.log(scale) / 2 - np.log(np.diag(root_NN)).sum() - np.log(weight) / 2
    )
