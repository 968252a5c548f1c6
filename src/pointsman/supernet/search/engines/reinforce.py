"""Reinforcement learning: a policy for every choice, trained on the rewards of what it drew.

Each choice has a categorical policy whose logits depend linearly on how much cost matters. For
every draw that weight is drawn anew, the genotype is drawn from the policy under it, and the reward
is quality minus weight times cost, both in standard deviations of what was seen; the policy follows
REINFORCE (Williams 1992, Machine Learning 8), with the mean reward of a batch as its baseline and a
bonus for entropy. One policy thus serves the whole front, where Zoph and Le (2016, arXiv
1611.01578) train a recurrent controller for one reward, and MnasNet (Tan et al. 2018, arXiv
1807.11626) one for each target.

Legend: B draws of a batch, C choices, O options of the choice with most of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pointsman.supernet.search.drawing import Drawing
from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype

Array = np.ndarray[Any, np.dtype[np.float64]]

BATCH = 10
RATE, ENTROPY = 0.3, 0.01
MOST = 2.0  # weight of the cost at most, the least is 0
IDLE = 30  # batches of the policy that hold nothing new, after which genotypes are drawn by chance


def reinforce(
    problem: Problem, seed: int, *, batch: int = BATCH, rate: float = RATE, entropy: float = ENTROPY
) -> Proposals:
    """Draws from the policy and follows the rewards; what was seen before teaches for free.

    Args:
        problem: what is searched.
        seed: of everything that is drawn.
        batch: draws for one update.
        rate: of the updates of the logits.
        entropy: weight of the policy's entropy beside the reward.
    """
    rng = np.random.default_rng(seed)
    drawing = Drawing(problem, rng)
    policy = _Policy([len(choice.options) for choice in problem.space.choices])
    seen: dict[Genotype, Evaluation] = {}
    idle = 0
    while True:
        weights_B = rng.random(batch) * MOST
        drawn = [policy.draw(float(weight), rng) for weight in weights_B]
        genotypes = [problem.space.canonical(indices) for indices in drawn]
        new = [g for g in dict.fromkeys(genotypes) if g not in seen and problem.affordable(g)]
        idle = 0 if new else idle + 1
        if idle == IDLE:
            new, idle = drawing.draw(batch), 0
            if not new:
                return
        if new:
            drawing.take(new)
            seen.update((each.genotype, each) for each in (yield new))
        rewards_B = _rewards(genotypes, weights_B, seen, problem)
        policy.learn(np.array(drawn), weights_B, rewards_B, rate, entropy)


def _rewards(
    genotypes: Sequence[Genotype],
    weights_B: Array,
    seen: dict[Genotype, Evaluation],
    problem: Problem,
) -> Array:
    """(B,) quality less weighted cost, each standardised; a failure has the worst quality."""
    ran = [each for each in seen.values() if not each.failed]
    qualities = np.array([each.quality for each in ran] or [0.0])
    costs = np.array([each.cost for each in ran] or [0.0])
    rewards = []
    for genotype, weight in zip(genotypes, weights_B, strict=True):
        known = seen.get(genotype)
        quality = qualities.min() if known is None or known.failed else known.quality
        above = (quality - qualities.mean()) / (qualities.std() or 1.0)
        dear = (problem.cost(genotype) - costs.mean()) / (costs.std() or 1.0)
        rewards.append(above - weight * dear)
    return np.array(rewards)


class _Policy:
    """Logits (C, O) and their slopes in the weight of the cost; options a choice lacks are out."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.there_CO = np.arange(max(sizes)) < np.array(sizes)[:, None]
        self.logits_CO = np.zeros(self.there_CO.shape)
        self.slopes_CO = np.zeros(self.there_CO.shape)

    def chances(self, weight: float) -> Array:
        """(C, O) probability of each option."""
        logits_CO = np.where(self.there_CO, self.logits_CO + weight * self.slopes_CO, -np.inf)
        raised_CO = np.exp(logits_CO - logits_CO.max(1, keepdims=True))
        return np.asarray(raised_CO / raised_CO.sum(1, keepdims=True))

    def draw(self, weight: float, rng: np.random.Generator) -> list[int]:
        """An option of each choice."""
        below_C1 = rng.random((len(self.logits_CO), 1))
        reached_CO = self.chances(weight).cumsum(1) < below_C1
        return [int(n) for n in np.minimum(reached_CO.sum(1), self.there_CO.sum(1) - 1)]

    def learn(
        self, drawn_BC: Array, weights_B: Array, rewards_B: Array, rate: float, entropy: float
    ) -> None:
        """One step up the gradient of the expected reward and of the entropy."""
        for indices_C, weight, reward in zip(
            drawn_BC, weights_B, rewards_B - rewards_B.mean(), strict=True
        ):
            chance_CO = self.chances(float(weight))
            taken_CO = np.eye(chance_CO.shape[1])[indices_C]
            log_CO = np.log(np.maximum(chance_CO, 1e-12))
            spread_C1 = -(chance_CO * log_CO).sum(1, keepdims=True)
            slope_CO = reward * (taken_CO - chance_CO) - entropy * chance_CO * (log_CO + spread_C1)
            step_CO = rate / len(drawn_BC) * slope_CO
            self.logits_CO += step_CO
            self.slopes_CO += weight * step_CO
