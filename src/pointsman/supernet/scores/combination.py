"""Several zero-cost scores combined by a few evaluations.

He et al. 2024, "Robustifying and boosting training-free neural architecture search" (RoBoT), arXiv
2403.07591. No score is best everywhere. Each is scaled to [0, 1] over the pool, and a weighted sum
with weights in [-1, 1] ranks it. Bayesian optimisation explores the weights: a weighting is worth
the quality of the network it ranks first, which is evaluated once and remembered. Then the best
weighting is exploited: its ranking is walked down.

Legend: G genotypes, M scores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.scores.table import ScoreTable
from pointsman.supernet.search.engine import Engine, Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

Array = np.ndarray[Any, np.dtype[np.float64]]
CANDIDATES = 500  # weightings among which the next is chosen
OPTIMISM = 2.576  # standard deviations of the upper confidence bound, as in the paper's tool


def scaled(values: Array) -> Array:
    """(G, M) scores, each from 0 to 1 over the finite ones; 0 where one is not finite or constant.

    So a missing score has no say on a network.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    with np.errstate(all="ignore"):
        low = np.nanmin(np.where(np.isnan(finite), np.inf, finite), axis=0)
        high = np.nanmax(np.where(np.isnan(finite), -np.inf, finite), axis=0)
        share: Array = np.nan_to_num((finite - low) / (high - low), nan=0.0, posinf=0.0, neginf=0.0)
    return share


def combined_scores(table: ScoreTable, explored: int = 19) -> Engine:
    """A search engine that ranks a scored pool by the weighting of its scores that does best.

    It proposes one genotype at a time, never one twice, and ends when the pool is spent. Genotypes
    beyond the problem's budget are left out first.

    Args:
        table: scores of the pool, with a value for every column that shall take part.
        explored: weightings that are tried before the best is walked down; the paper's is one less
            than the evaluations that there are. Those that rank a known network first are free.

    Raises:
        InputError: no weighting to explore, or an empty table.
    """
    if explored < 1 or not table.genotypes or not table.values:
        raise InputError(
            "a combination explores at least one weighting over at least one scored genotype, got "
            f"explored={explored}, {len(table.genotypes)} genotypes, {len(table.values)} scores"
        )

    def engine(problem: Problem, seed: int) -> Proposals:
        rows = [at for at, g in enumerate(table.genotypes) if problem.affordable(g)]
        pool = [table.genotypes[at] for at in rows]
        values = np.array([table.values[name] for name in table.values], dtype=float).T
        scores_GM = scaled(values[rows])
        known: dict[Genotype, float] = {}
        weights = yield from _explore(pool, scores_GM, explored, known, seed)
        for at in np.argsort(-(scores_GM @ weights), kind="stable"):
            if pool[at] not in known:
                yield from _asked(pool[at], known)

    return engine


def _asked(genotype: Genotype, known: dict[Genotype, float]) -> Any:
    """Its quality; a failure counts as the worst that is known."""
    if genotype not in known:
        (found,) = yield [genotype]
        assert isinstance(found, Evaluation)
        known[genotype] = found.quality
    return known[genotype]


def _explore(
    pool: Sequence[Genotype],
    scores_GM: Array,
    explored: int,
    known: dict[Genotype, float],
    seed: int,
) -> Any:
    """The best weighting found."""
    rng = np.random.default_rng(seed)
    tried: list[Array] = []
    worth: list[float] = []
    for _ in range(explored if pool else 0):
        drawn = rng.uniform(-1, 1, size=(CANDIDATES, scores_GM.shape[1]))
        weights = drawn[_most_promising(np.array(tried), np.array(worth), drawn)]
        worth.append((yield from _asked(pool[int(np.argmax(scores_GM @ weights))], known)))
        tried.append(weights)
    if not tried or np.isnan(worth).all():
        return np.ones(scores_GM.shape[1])
    return tried[int(np.nanargmax(worth))]


def _most_promising(tried: Array, worth: Array, drawn: Array) -> int:
    """The candidate with the highest upper confidence bound; the first while nothing is known."""
    from sklearn.gaussian_process import GaussianProcessRegressor  # slow to import
    from sklearn.gaussian_process.kernels import Matern

    if not len(tried) or np.isnan(worth).all() or np.nanmax(worth) == np.nanmin(worth):
        return 0
    filled = np.where(np.isnan(worth), np.nanmin(worth), worth)
    # The kernel is kept as it is: a few points say little about its length.
    model = GaussianProcessRegressor(
        Matern(nu=2.5), alpha=1e-4, normalize_y=True, optimizer=None
    ).fit(tried, filled)
    mean, spread = model.predict(drawn, return_std=True)
    return int(np.argmax(mean + OPTIMISM * spread))
