"""Search by sampling from a learned distribution.

DiffusionNAG: An et al. 2023, arXiv 2305.16943.

The distribution is learned once from genotypes of the space, which need no evaluation. In each turn
a guide is fitted to the evaluations so far, candidates are sampled under its gradient, and a second
predictor, of genotypes without noise, ranks them; the best are evaluated.

Where we depart: the paper seeks one best network. Here the guide learns quality less a weight times
the cost, with a new weight each turn, so that the turns spread along the front; candidates are
ranked with their counted cost.
"""

from collections.abc import Sequence

import numpy as np

from pointsman.supernet.predictors.gaussian import Array
from pointsman.supernet.predictors.quality import QualityPredictor
from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.generation import GenotypeDiffusion
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

FIRST, BATCH, CANDIDATES, EXAMPLES = 30, 10, 200, 2000
GUIDANCE = 10.0
MOST = 2.0  # weight of the cost at most, the least is 0


def diffusion_search(
    problem: Problem,
    seed: int,
    *,
    first: int = FIRST,
    batch: int = BATCH,
    guidance: float = GUIDANCE,
    updates: int = 600,
) -> Proposals:
    """Samples candidates under the guidance of what was evaluated.

    Args:
        problem: what is searched; every choice of its space always matters.
        seed: of everything that is drawn or trained.
        first: genotypes drawn by chance before there is a guide.
        batch: genotypes evaluated a turn.
        guidance: weight of the guide's gradient.
        updates: of the networks, at the start and in each turn.

    Raises:
        InputError: a choice of the space depends on another.
    """
    rng = np.random.default_rng(seed)
    drawing = Drawing(problem, rng)
    examples = [problem.space.sample(rng) for _ in range(EXAMPLES)]
    diffusion = GenotypeDiffusion(problem.space, updates=updates).fit(examples, seed=seed)
    known: list[Evaluation] = []
    proposed = drawing.draw(first)
    turn = 0
    while proposed:
        known += yield proposed
        turn += 1
        ran = [each for each in known if not each.failed]
        proposed = []
        if len(ran) > 1:
            weight, draw = float(rng.random() * MOST), seed * 10_007 + turn
            found = _sampled(diffusion, ran, weight, guidance, draw)
            new = [g for g in dict.fromkeys(found) if drawing.new(g)]
            proposed = _best(problem, ran, new, weight)[:batch]
            drawing.take(proposed)
        proposed += drawing.draw(batch - len(proposed))


def _sampled(
    diffusion: GenotypeDiffusion,
    ran: Sequence[Evaluation],
    weight: float,
    guidance: float,
    seed: int,
) -> list[Genotype]:
    genotypes = [each.genotype for each in ran]
    goal = _goal(ran, [e.quality for e in ran], [e.cost for e in ran], weight)
    diffusion.fit_guide(genotypes, goal.tolist(), seed=seed)
    vectors = diffusion.sample(CANDIDATES, seed=seed, guidance=guidance)
    return [genotype for genotype in diffusion.genotypes(vectors) if genotype is not None]


def _best(
    problem: Problem, ran: Sequence[Evaluation], candidates: list[Genotype], weight: float
) -> list[Genotype]:
    """The candidates, best first by a predictor without noise and by their counted cost."""
    if not candidates:
        return []
    predictor = QualityPredictor(problem.space)
    predictor.fit([each.genotype for each in ran], [each.quality for each in ran])
    costs = [problem.cost(genotype) for genotype in candidates]
    goal = _goal(ran, predictor.predict(candidates), costs, weight)
    return [candidates[at] for at in np.argsort(-goal, kind="stable")]


def _goal(
    ran: Sequence[Evaluation],
    quality: Sequence[float] | Array,
    cost: Sequence[float],
    weight: float,
) -> Array:
    """Quality less weighted cost, each in standard deviations of what was evaluated."""
    qualities, costs = np.array([(each.quality, each.cost) for each in ran]).T
    above = (np.asarray(quality) - qualities.mean()) / (qualities.std() or 1.0)
    return np.asarray(above - weight * (np.asarray(cost) - costs.mean()) / (costs.std() or 1.0))
