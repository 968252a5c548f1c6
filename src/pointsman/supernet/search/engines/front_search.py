"""Our own engine: costs are counted, only quality is modelled, and nothing is evaluated twice.

A Gaussian process over the choices and the logarithm of the cost predicts the quality of every
candidate. The next genotype is the one from which the hypervolume is expected to grow most; the
variance that belongs to each genotype alone counts as a chance to gain, for an evaluation is
exact and its luck stays in the front.

A small space is listed once with all its costs. Of a larger one, candidates are drawn anew from
time to time: by chance, from the neighbourhood of the front, and from that of the last candidates.

Every number depends on the seed and the answers alone: no set is iterated, ties go to the first.
"""

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from pointsman.supernet.predictors.gaussian import (
    Array,
    GaussianProcess,
    coordinates,
)
from pointsman.supernet.search.drawing import LISTED, Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.expected_gain import expected_gain
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.space import Genotype

FIRST = 20  # genotypes before there is a model
STRATA = 10  # times as many drawn, from which the first are taken evenly over costs
SHORTLIST = 500  # candidates that are followed from one answer to the next
GROWTH = 1.4  # of the number of evaluations between two looks at all candidates
PARENTS = 50  # of the last shortlist, beside the front
POOL = 1000  # candidates of a space that is too large to list
MARGIN = 0.1  # of the reference point, beyond the dearest candidate


def front_search(problem: Problem, seed: int, *, first: int = FIRST, batch: int = 1) -> Proposals:
    """Proposes what is expected to grow the front most.

    Args:
        problem: what is searched.
        seed: of the first genotypes, and of the candidates of a large space.
        first: genotypes evaluated before there is a model.
        batch: genotypes proposed at a time. With more than one, each after the first is chosen as
            if those before it would turn out as predicted.
    """
    drawing = Drawing(problem, np.random.default_rng(seed))
    first = max(first, 2)
    candidates = _Candidates(problem, drawing)
    known: list[Evaluation] = []
    for begin in _batches(candidates.spread_over_costs(first), batch):
        known += yield begin
    process, chosen_at = GaussianProcess(), 0
    while True:
        genotypes = candidates.look(known)
        if not genotypes:
            return
        x, c, _ = candidates.points([each.genotype for each in known])
        y = np.array(_qualities(known, _worst(known)))
        if len(known) >= 2 * chosen_at:
            process.choose(x, c, y)
            chosen_at = len(known)
        turn = _Turn(candidates, process.fit(x, c, y), genotypes, known)
        until = math.ceil(len(known) * GROWTH)
        while len(known) < until:
            asked = turn.ask(batch, known)
            if not asked:
                break
            answers = yield asked
            known += answers
            turn.answer(answers, known)


class _Candidates:
    """What could be proposed, with coordinates and costs."""

    def __init__(self, problem: Problem, drawing: Drawing) -> None:
        self.problem, self.drawing = problem, drawing
        self.listed: list[Genotype] | None = None
        self.last: list[Genotype] = []
        self._costs: dict[Genotype, float] = {}
        if problem.space.count() <= LISTED:
            self.listed = [g for g in problem.space.enumerate() if self._affordable(g)]
            self._set_limits(self.listed)
            self._place = {genotype: at for at, genotype in enumerate(self.listed)}
            self._points = self._computed(self.listed)

    def _affordable(self, genotype: Genotype) -> bool:
        budget = self.problem.budget
        return budget is None or self._cost(genotype) <= budget

    def _cost(self, genotype: Genotype) -> float:
        """Counted once."""
        if genotype not in self._costs:
            self._costs[genotype] = float(self.problem.cost(genotype))
        return self._costs[genotype]

    def _set_limits(self, genotypes: Sequence[Genotype]) -> None:
        costs = [self._cost(genotype) for genotype in genotypes]
        finite = [cost for cost in costs if math.isfinite(cost)]  # others belong to broken ones
        self.limits = min(finite, default=0.0), max(finite, default=0.0)

    def spread_over_costs(self, count: int) -> list[Genotype]:
        """So many new genotypes, one by chance from each of as many parts of the range of costs."""
        drawing = self.drawing
        drawn = self.listed
        if drawn is None:
            drawn = drawing.draw(count * STRATA)
            drawing.taken.clear()
            self._set_limits(drawn)
        order = sorted(drawn, key=lambda g: (self._cost(g), g))
        parts = [part for part in np.array_split(np.arange(len(order)), count) if len(part)]
        found = [order[int(drawing.rng.choice(part))] for part in parts]
        found = [found[at] for at in drawing.rng.permutation(len(found))]
        drawing.take(found)
        return found

    def look(self, known: Sequence[Evaluation]) -> list[Genotype]:
        """What can be proposed now."""
        taken = self.drawing.taken
        if self.listed is not None:
            return [genotype for genotype in self.listed if genotype not in taken]
        found: dict[Genotype, None] = {}
        space, rng = self.problem.space, self.drawing.rng
        parents = [each.genotype for each in front(known)]
        for parent in parents:
            found.update(dict.fromkeys(space.neighbours(parent)))
        parents += self.last[:PARENTS]
        for _ in range(POOL if parents else 0):
            one, other = (parents[rng.integers(len(parents))] for _ in range(2))
            found[space.mutate(space.cross(one, other, rng), rng)] = None
        found.update((space.sample(rng), None) for _ in range(POOL))
        new = [g for g in found if g not in taken and self._affordable(g)]
        if not new:  # nearly nothing is affordable
            new = self.drawing.draw(POOL)
            taken.difference_update(new)
        return new

    def points(self, genotypes: Sequence[Genotype]) -> tuple[Array, Array, Array]:
        """Coordinates (N, D), logarithms of costs in shares of their range (N, 1), costs (N,)."""
        if self.listed is None:
            return self._computed(genotypes)
        rows = np.array([self._place[genotype] for genotype in genotypes])
        x_ND, c_N1, costs_N = self._points
        return x_ND[rows], c_N1[rows], costs_N[rows]

    def _computed(self, genotypes: Sequence[Genotype]) -> tuple[Array, Array, Array]:
        x_ND = coordinates(self.problem.space, np.array(genotypes))
        costs_N = np.array([self._cost(genotype) for genotype in genotypes])
        low, high = self.limits
        tiny = max(high, 1e-300) * 1e-9  # costs may be 0
        scale = np.log(high + tiny) - np.log(low + tiny)
        finite_N = np.where(np.isfinite(costs_N), costs_N, high)
        c_N = (np.log(np.maximum(finite_N, 0) + tiny) - np.log(low + tiny)) / (scale or 1.0)
        return x_ND, c_N[:, None], costs_N


class _Turn:
    """From one look at all candidates to the next: the shortlist and what is known of it."""

    def __init__(
        self,
        candidates: _Candidates,
        process: GaussianProcess,
        genotypes: list[Genotype],
        known: Sequence[Evaluation],
    ) -> None:
        x_MD, c_M1, self.costs = candidates.points(genotypes)
        low, high = candidates.limits
        high = float(self.costs[np.isfinite(self.costs)].max(initial=high))
        self.dearest = high + MARGIN * ((high - low) or 1.0)
        mean_M, spread_M = process.roughly_at(x_MD, c_M1)
        gain = self._gain(mean_M, spread_M, front(known), _worst(known))
        best = np.argsort(-gain, kind="stable")[:SHORTLIST]
        self.drawing = candidates.drawing
        self.genotypes = candidates.last = [genotypes[at] for at in best]
        self.costs = self.costs[best]
        self.posterior = process.at(x_MD[best], c_M1[best], room=len(best))

    def _gain(
        self, mean_M: Array, spread_M: Array, best: Sequence[Evaluation], worst: float
    ) -> Array:
        front_K2 = np.array([(each.cost, each.quality) for each in best]).reshape(-1, 2)
        return expected_gain(
            mean_M,
            spread_M,
            self.costs,
            front_K2,
            cost=self.dearest,
            quality=worst,
        )

    def ask(self, batch: int, known: Sequence[Evaluation]) -> list[Genotype]:
        """The next genotypes; fewer if the shortlist ends."""
        asked: list[Genotype] = []
        believed, worst = front(known), _worst(known)
        while len(asked) < batch and len(self.posterior.asked) < len(self.genotypes):
            gain = self._gain(self.posterior.mean, self.posterior.spread, believed, worst)
            gain[self.posterior.asked] = -1
            at = int(gain.argmax())
            expected = float(self.posterior.mean[at])
            genotype = self.genotypes[at]
            believed = front([*believed, Evaluation(genotype, expected, float(self.costs[at]))])
            self.posterior.ask(at)
            asked.append(genotype)
        self.drawing.take(asked)
        return asked

    def answer(self, answers: Sequence[Evaluation], known: Sequence[Evaluation]) -> None:
        """Of what was asked last, in that order; `known` holds them too."""
        self.posterior.answer(_qualities(answers, _worst(known)))


def _worst(known: Sequence[Evaluation]) -> float:
    return min((each.quality for each in known if not each.failed), default=0.0)


def _qualities(evaluations: Sequence[Evaluation], worst: float) -> list[float]:
    """A failure is as good as the worst that ran."""
    return [worst if each.failed else each.quality for each in evaluations]


def _batches(genotypes: list[Genotype], size: int) -> list[list[Genotype]]:
    rest = iter(genotypes)
    return list(iter(lambda: list(islice(rest, size)), []))
