"""Models merged from fine-tuned ones, and the front of merges found with few evaluations.

Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation"
(2024, arXiv 2406.07529). A merge adds a share c_k of each task vector to the base,

    theta(c) = theta_0 + sum_k c_k (theta_k - theta_0).

Task vectors are small, so the metric of each task is close to quadratic in c: a few evaluated
merges fit m(c) = link(c^T A c + b^T c + e), and NSGA-III finds the front on these surrogates
(amortised: no model is run).

Where we depart: the published code searches c in [-3, 3] while it samples in [0, 1], so that its
surrogates extrapolate; here the search stays in the box that was sampled. The returned merges
should be evaluated again.

Legend: K models that are merged, N merges, Q = (K + 1)(K + 2) / 2 coefficients, T tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import comb
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Link = Literal["identity", "sigmoid", "softplus"]
EDGE = 1e-3  # metrics are kept so far from the ends of their link's range


def merge(
    base: Mapping[str, Tensor], tuned: Sequence[Mapping[str, Tensor]], shares: Sequence[float]
) -> dict[str, Tensor]:
    """Weights of a merge, for `load_state_dict`; what is no floating point number is the base's.

    Args:
        base: state of the model that all were fine-tuned from.
        tuned: K states of the same names and shapes.
        shares: (K,) c.

    Raises:
        InputError: another number of shares, or states of other names or shapes.
    """
    if len(shares) != len(tuned):
        raise InputError(
            f"a merge has one share a model: {len(tuned)} models, {len(shares)} shares"
        )
    for number, state in enumerate(tuned):
        odd = [n for n in {**base, **state} if n not in base or n not in state]
        odd += [n for n in base if n in state and base[n].shape != state[n].shape]
        if odd:
            raise InputError(
                f"models that are merged have one architecture, number {number} differs from the "
                f"base in {odd[0]!r}"
            )
    merged = {}
    for name, value in base.items():
        merged[name] = value.clone()
        if value.is_floating_point():
            for share, state in zip(shares, tuned, strict=True):
                merged[name] += float(share) * (state[name] - value)
    return merged


class QuadraticSurrogate:
    """A metric of a merge as a quadratic function of its shares, behind a link.

    Args:
        link: "sigmoid" for accuracies, "softplus" for losses, "identity" for anything else.

    Attributes:
        coefficients_: (Q,) constant, linear and quadratic ones.
    """

    def __init__(self, link: Link = "identity") -> None:
        self.link = link

    def fit(self, shares_NK: Array, metric_N: Array) -> Self:
        """Least squares on the linked metric.

        Args:
            shares_NK: of merges that were evaluated.
            metric_N: of one task.

        Raises:
            InputError: fewer merges than coefficients.
        """
        terms_NQ = _terms(np.asarray(shares_NK, dtype=np.float64))
        if len(terms_NQ) < terms_NQ.shape[1]:
            raise InputError(
                f"{terms_NQ.shape[1]} coefficients need as many merges, got {len(terms_NQ)}"
            )
        metric: Array = np.asarray(metric_N, dtype=np.float64)
        if self.link == "sigmoid":
            inside = np.clip(metric, EDGE, 1 - EDGE)
            metric = np.log(inside / (1 - inside))
        elif self.link == "softplus":
            metric = np.log(np.expm1(np.maximum(metric, EDGE)))
        solved = np.linalg.lstsq(terms_NQ, metric)[0]
        self.coefficients_: Array = np.asarray(solved, dtype=np.float64)
        return self

    def predict(self, shares_NK: Array) -> Array:
        """(N,) metric."""
        inner: Array = _terms(np.asarray(shares_NK, dtype=np.float64)) @ self.coefficients_
        if self.link == "sigmoid":
            return 0.5 * (1 + np.tanh(inner / 2))  # the same, without overflow
        return np.logaddexp(0, inner) if self.link == "softplus" else inner


def _terms(shares_NK: Array) -> Array:
    """(N, Q): 1, every share, every product of two."""
    rows, columns = np.triu_indices(shares_NK.shape[1])
    products = shares_NK[:, rows] * shares_NK[:, columns]
    return np.concatenate([np.ones((len(shares_NK), 1)), shares_NK, products], axis=1)


def design(models: int, count: int | None = None, seed: int = 0) -> Array:
    """(N, K) shares to evaluate: each model alone, then a coarse grid of [0, 1] in random order.

    Args:
        models: K.
        count: N; None: (K + 1)(K + 2), twice the coefficients.
        seed: of the order.

    Raises:
        InputError: more merges than twelve values a share give.
    """
    wanted = (models + 1) * (models + 2) if count is None else count
    rows = [tuple(float(at == one) for at in range(models)) for one in range(models)]
    values = next((v for v in range(3, 13) if v**models >= wanted), 12)  # of each share
    grid = list(product(np.linspace(0, 1, values).tolist(), repeat=models))
    order = np.random.default_rng(seed).permutation(len(grid))
    found = dict.fromkeys([*rows, *(grid[at] for at in order)])
    if len(found) < wanted:
        raise InputError(f"a grid of {models} shares has {len(found)} merges, {wanted} asked for")
    return np.array(list(found)[:wanted])


def amortised_front(
    surrogates: Sequence[QuadraticSurrogate],
    models: int,
    *,
    population: int = 100,
    generations: int = 50,
    seed: int = 0,
) -> Array:
    """(N, K) shares on the front of the surrogates, found by NSGA-III; higher metrics are better.

    Args:
        surrogates: T, one a task, fitted on metrics of which more is better.
        models: K.
        population: of NSGA-III.
        generations: of NSGA-III.
        seed: of NSGA-III.

    Raises:
        InputError: pymoo is not installed, or fewer than two tasks.
    """
    if len(surrogates) < 2:
        raise InputError(f"a front of merges has at least two tasks, got {len(surrogates)}")
    try:
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.optimize import minimize
        from pymoo.util.ref_dirs import get_reference_directions
    except ImportError as error:
        raise InputError('fronts of merges need pymoo: pip install "pointsman[search]"') from error

    class Surrogates(PymooProblem):  # type: ignore[misc]
        """Minimise the negative metrics."""

        def __init__(self) -> None:
            super().__init__(n_var=models, n_obj=len(surrogates), xl=0.0, xu=1.0)

        def _evaluate(self, x: Array, out: dict[str, Array], *_: object, **__: object) -> None:
            out["F"] = -np.stack([each.predict(x) for each in surrogates], axis=1)

    parts = 1  # as many directions as fit into the population
    while comb(parts + len(surrogates), len(surrogates) - 1) <= population:
        parts += 1
    directions = get_reference_directions("das-dennis", len(surrogates), n_partitions=parts)
    algorithm = NSGA3(directions, pop_size=population)
    result = minimize(Surrogates(), algorithm, ("n_gen", generations), seed=seed)
    found: Array = np.atleast_2d(result.X)
    return found[np.lexsort(found.T[::-1])]
