"""RoBoT: several zero-cost scores, weighed by what a few evaluations say, then walked down.

He et al., "Robustifying and Boosting Training-Free Neural Architecture Search" (2024, arXiv
2403.07591).

No zero-cost score is best everywhere. Each is scaled to [0, 1]; a weighted sum, with weights in
[-1, 1], ranks the pool. Bayesian optimisation explores the weights: a weighting is worth what the
network that it ranks first is worth, and networks known already are free. The rest of the
evaluations walks down the best weighting's ranking. The part is `supernet.scores.combined_scores`,
a search engine like any other.

What was settled:
- 20 evaluations, so 19 weightings are explored, as published; a Gaussian process with the kernel of
  the tool that the authors use, and its upper confidence bound, over 500 random weightings.
- The world is synthetic: 3,000 networks whose quality is normal, and six scores whose correlations
  with it are drawn from [-0.6, 0.6]. Ten worlds a seed. A search is worth the best quality that it
  evaluates, in standard deviations.
- "Exploration only" spends all 20 evaluations on weightings (up to 60 are tried), and so the
  part's own walk is what is measured. Random search draws 20 networks. "Mean single score" is the
  network that a single score ranks first, averaged over the scores.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.scores import ScoreTable
    from pointsman.supernet.search.engine import Engine
    from pointsman.supernet.search.problem import Problem

POOL, SCORES, EVALUATIONS, WORLDS = 3000, 6, 20, 10


def _world(seed: int) -> "tuple[ScoreTable, Problem]":
    """Qualities and scores of a pool, and the search for the best of it."""
    import numpy as np

    from pointsman.supernet.scores import ScoreTable
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.space import Choice, Space

    rng = np.random.default_rng(seed)
    quality = rng.normal(size=POOL)
    values = {}
    for at in range(SCORES):
        correlation = rng.uniform(-0.6, 0.6)
        noise = rng.normal(size=POOL) * (1 - correlation**2) ** 0.5
        values[f"score {at}"] = (correlation * quality + noise).tolist()
    space = Space([Choice("network", tuple(range(POOL)))])
    table = ScoreTable(tuple((at,) for at in range(POOL)), values, {})
    return table, Problem(space, lambda genotype: float(quality[genotype[0]]), lambda genotype: 0.0)


def _best(problem: "Problem", engine: "Engine", seed: int, evaluations: int = EVALUATIONS) -> float:
    from pointsman.supernet.search.run import search

    return max(each.quality for each in search(problem, engine, evaluations, seed=seed))


def quick() -> None:
    """A score that tells the truth is found, upside down as well, and nothing is asked twice."""
    from pointsman.supernet.scores import ScoreTable, combined_scores
    from pointsman.supernet.search.run import search

    table, problem = _world(0)
    truth = [problem.quality(genotype) for genotype in table.genotypes]
    for sign in (1.0, -1.0):
        values = {**table.values, "score 0": [sign * value for value in truth]}
        told = ScoreTable(table.genotypes, values, {})
        history = search(problem, combined_scores(told), EVALUATIONS, seed=0)
        asked = {each.genotype for each in history}
        must(len(asked) == len(history) == EVALUATIONS, "20 evaluations, none twice")
        best = max(each.quality for each in history)
        must(best > sorted(truth)[-30], f"within the best 1%, got {best}")
    again = search(problem, combined_scores(told), EVALUATIONS, seed=0)
    must(again == history, "the same seed, the same history")


def full(seed: int) -> Figures:
    """Best quality in 20 evaluations: combined, exploration alone, random, single scores."""
    from statistics import fmean

    from pointsman.supernet.scores import combined_scores
    from pointsman.supernet.search.engines.random_search import random_search

    explored = {"RoBoT": EVALUATIONS - 1, "exploration only": 60}
    found: dict[str, list[float]] = {}
    for world in range(seed * WORLDS, (seed + 1) * WORLDS):
        table, problem = _world(world)
        for name, weightings in explored.items():
            value = _best(problem, combined_scores(table, explored=weightings), world)
            found.setdefault(f"{name}: best", []).append(value)
        chance = _best(problem, random_search, world)
        found.setdefault("random search: best", []).append(chance)
        tops = [values.index(max(values)) for values in map(list, table.values.values())]
        single = fmean(problem.quality((top,)) for top in tops)
        found.setdefault("mean single score: best", []).append(single)
        won = found["RoBoT: best"][-1] > chance
        found.setdefault("RoBoT: share of worlds above random", []).append(float(won))
    return {name: fmean(values) for name, values in found.items()}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "RoBoT: share of worlds above random") >= 0.8 and mean(
        measurements, "RoBoT: best"
    ) >= mean(measurements, "exploration only: best")


CLAIM = Claim(
    slug="robot-nas",
    paper="Robustifying and Boosting Training-Free Neural Architecture Search",
    year=2024,
    arxiv="2403.07591",
    level="supernet",
    claim="Zero-cost scores weighed by Bayesian optimisation over few evaluations, whose ranking "
    "is then walked down, find better networks than random search does.",
    baseline="Random search; and the same exploration without the walk; 20 evaluations each.",
    criterion="Over ten synthetic pools a seed: the best of 20 evaluations beats random search in "
    "at least 80% of the pools, and is in the mean at least that of exploration alone.",
    quick=quick,
    full=full,
    decide=decide,
    composition="scaled scores · Gaussian process over their weights · walk down the ranking",
    entry="pointsman.supernet.scores.combined_scores",
    key={
        "RoBoT": "RoBoT: best",
        "exploration only": "exploration only: best",
        "random": "random search: best",
        "above random": "RoBoT: share of worlds above random",
    },
)
