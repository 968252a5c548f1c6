"""N2N Learning: two policies that compress a teacher, one layer and then one size after another.

Ashok et al., "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning" (2017, arXiv 1709.06030).

A bidirectional LSTM over the layers draws which are removed; on the best child that was found, an
autoregressive LSTM draws by which factor each size shrinks. A child is trained briefly on the
teacher's logits and rewarded by A * C(2 - C), with A its accuracy over the teacher's and C the
share of the parameters that are gone. Both policies follow REINFORCE. The parts are
`policy_search`, `LayerwisePolicy`, `AutoregressivePolicy` and `CompressionReward` of
`supernet.transforming`.

What was settled:
- The teacher has seven hidden layers of 64 units on noisy digits. The first is marked as fixed, the
  other six can be removed: 64 children, each trained once and looked up from then on, so that
  policies can be held against the truth. Rewards are of the calibration part.
- Children start from the teacher's layers that they keep, cut to size, the student of the second
  stage too; they get 80 updates of AdamW.
- Each draw is credited with its own reward; the baseline is a moving average with decay 0.95.
- For sizes the table is the one of the space of slices, 36 networks 64-W1-W2-10, with the largest
  as the teacher. The chain of both stages is run as well: what it ends with is trained in full on
  the teacher's logits and measured on the test part.
- Tried out: the children's updates on seed 100; the rate of removal on seeds 101 and 102, where
  0.01, 0.02, 0.03 and 0.06 closed 31, 45, 47 and 23% of the gap. The published rates are 0.003 for
  removal and 0.1 for shrinkage; that of shrinkage, 0.01, was seen once on seed 100 and left.
- Random draws of the same number are uniform over the same space. Policies have seeds of their own,
  0 to 2, with one table; five were tried before, over two minutes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.supernet.search import Problem
    from pointsman.supernet.space import Genotype, Space
    from pointsman.supernet.transforming.policy_search import Reward

    Hidden = Callable[[Genotype], list[int]]

REMOVABLE, UNITS = 6, 64
TEACHER_UPDATES, CHILD_UPDATES, STUDENT_UPDATES = 600, 80, 600
ROLLOUTS, UPDATES, LAST = 5, 60, 10
POLICY_SEEDS = range(3)
REMOVAL_RATE, SHRINKAGE_RATE = 3e-2, 1e-2


def quick() -> None:
    """Both policies find what is rewarded, no child is trained twice, the reward is as given."""
    from pointsman.supernet.search import Evaluation, Problem, search
    from pointsman.supernet.space import Choice, Space
    from pointsman.supernet.transforming import (
        AutoregressivePolicy,
        CompressionReward,
        LayerwisePolicy,
        policy_search,
    )

    reward = CompressionReward(0.8, 100, least_quality=0.5)
    must(abs(reward(Evaluation((0,), 0.4 * 2, 50), 0) - 0.75) < 1e-12, "half the cost gives 0.75")
    must(reward(Evaluation((0,), 0.4, 50), 15) == -1, "a missed constraint gives -1 in the end")
    must(reward(Evaluation((0,), 0.4, 50), 0) == 0.375, "and counts for nothing at first")
    must(reward(Evaluation((0,), float("nan"), 50), 0) == -1, "what does not run gives -1")
    space = Space([Choice(f"layer {at}", (False, True)) for at in range(4)])
    trained: list[Genotype] = []
    late: list[float] = []

    def quality(genotype: "Genotype") -> float:
        trained.append(genotype)
        return sum(a == b for a, b in zip(genotype, (1, 0, 0, 1), strict=True)) / 4

    problem = Problem(space, quality, lambda genotype: 1.0)
    for policy in (LayerwisePolicy, AutoregressivePolicy):
        trained.clear()
        late.clear()
        search(
            problem,
            partial(
                policy_search,
                policy=policy,
                reward=lambda child, update: child.quality,
                updates=60,
                rate=2e-2,
                drawn=lambda genotypes, rewards: late.extend(rewards),
            ),
            17,
        )
        must(len(set(trained)) == len(trained), "every child is trained once")
        must(sum(late[-50:]) / 50 > 0.65, f"the policy learns, got {sum(late[-50:]) / 50:.2f}")


def full(seed: int) -> Figures:
    """How much of the gap between chance and the best both policies close; the final student."""
    from pointsman.claims.architectures import SLICES, slice_parameters, slice_table
    from pointsman.claims.testbeds import accuracy
    from pointsman.supernet.search import Problem
    from pointsman.supernet.space import Choice, Space
    from pointsman.supernet.transforming import (
        MULTIPLIERS,
        AutoregressivePolicy,
        CompressionReward,
        LayerwisePolicy,
        policy_search,
        shrunk,
    )

    setup = _Setup(seed)
    layers = Space([Choice(f"layer {at}", (False, True)) for at in range(1, REMOVABLE + 1)])

    def kept(genotype: "Genotype") -> list[int]:
        return [0, *(at + 1 for at, stays in enumerate(genotype) if stays), REMOVABLE + 1]

    def whole(genotype: "Genotype") -> list[int]:
        return [UNITS] * (1 + sum(genotype))

    reward = CompressionReward(setup.accuracy, setup.cost([UNITS] * (1 + REMOVABLE)))
    removal = partial(policy_search, policy=LayerwisePolicy, rate=REMOVAL_RATE, reward=reward)
    problem = setup.problem(layers, kept, whole)
    found = _gaps(problem, removal, reward, seed, "removal")
    stays = kept(_best(problem, removal))

    table = slice_table(seed)
    slices = Problem(SLICES, lambda genotype: table[genotype][0], slice_parameters, "parameters")
    largest = list(SLICES.enumerate())[-1]
    of_slices = CompressionReward(table[largest][0], slice_parameters(largest))
    shrinkage = partial(policy_search, policy=AutoregressivePolicy, rate=SHRINKAGE_RATE)
    found |= _gaps(slices, partial(shrinkage, reward=of_slices), of_slices, seed, "shrinkage")

    sizes = Space([Choice(f"units {at}", MULTIPLIERS) for at in range(len(stays) - 1)])

    def left(genotype: "Genotype") -> list[int]:
        return [shrunk(UNITS, float(m)) for m in sizes.decode(genotype).values()]

    smaller = setup.problem(sizes, lambda genotype: stays, left)
    hidden = left(_best(smaller, partial(shrinkage, reward=reward)))
    student, test = setup.child(stays, hidden, STUDENT_UPDATES), setup.data.test
    found["teacher: accuracy"] = accuracy(setup.teacher(test.x), test.y)
    found["student: accuracy"] = accuracy(student(test.x), test.y)
    found["student: hidden layers"] = float(len(hidden))
    found["student: times smaller"] = reward.cost / setup.cost(hidden)
    return found


def _draws(problem: "Problem", engine: Any, seed: int) -> list[list[tuple["Genotype", float]]]:
    """Update after update, what a policy drew and what it got for it."""
    from pointsman.supernet.search import search

    updates: list[list[tuple[Genotype, float]]] = []

    def note(genotypes: "Sequence[Genotype]", rewards: Sequence[float]) -> None:
        updates.append(list(zip(genotypes, rewards, strict=True)))

    steps = partial(engine, rollouts=ROLLOUTS, updates=UPDATES, drawn=note)
    # one more than can be new, so that the policy has all of its updates
    search(problem, steps, ROLLOUTS * UPDATES + 1, seed=seed)
    return updates


def _best(problem: "Problem", engine: Any) -> "Genotype":
    """What the first policy found."""
    return max((draw for update in _draws(problem, engine, 0) for draw in update), key=_second)[0]


def _second(draw: tuple[Any, float]) -> float:
    return draw[1]


def _gaps(
    problem: "Problem", engine: Any, reward: "Reward", seed: int, row: str
) -> dict[str, float]:
    """Mean reward of the last updates between chance (0) and the best of the table (1)."""
    from statistics import fmean

    import numpy as np

    from pointsman.supernet.search.run import evaluate

    table = {g: reward(evaluate(problem, g), 0) for g in problem.space.enumerate()}
    rng = np.random.default_rng(seed)
    chance = fmean(table[problem.space.sample(rng)] for _ in range(ROLLOUTS * UPDATES))
    best = max(table.values())
    ends = []
    for policy in POLICY_SEEDS:
        last = _draws(problem, engine, policy)[-LAST:]
        ends.append(fmean(draw[1] for update in last for draw in update))
    return {
        f"{row}: best reward": best,
        f"{row}: mean reward of chance": chance,
        f"{row}: mean reward of the last draws": fmean(ends),
        f"{row}: share of the gap closed": (fmean(ends) - chance) / (best - chance),
        f"{row}: share of the gap closed, worst policy": (min(ends) - chance) / (best - chance),
    }


class _Setup:
    """Data, teacher, and children of any hidden sizes."""

    def __init__(self, seed: int) -> None:
        import torch

        from pointsman.claims.architectures import NOISE, judged, noisy_digits
        from pointsman.claims.testbeds import fit, mlp

        self.seed, self.data = seed, noisy_digits(seed)
        self.teacher = mlp(64, *[UNITS] * (1 + REMOVABLE), 10, seed=seed)
        fit(self.teacher, self.data.train, seed=seed, updates=TEACHER_UPDATES, noise=NOISE)
        self.teacher.requires_grad_(False)
        self.accuracy = judged(self.teacher, self.data)[0]
        self.torch = torch

    def child(self, kept: Sequence[int], hidden: Sequence[int], updates: int) -> "nn.Module":
        """Some of the teacher's layers, cut to hidden sizes, trained on its logits."""
        from pointsman.claims.architectures import NOISE
        from pointsman.claims.testbeds import fit, mlp

        def imitate(net: Any, x: Any, y: Any) -> Any:
            return self.torch.nn.functional.mse_loss(net(x), self.teacher(x))

        net = mlp(64, *hidden, 10, seed=self.seed)
        layers: list[Any] = list(net)[::2]
        whole: list[Any] = list(self.teacher)[::2]
        for layer, at in zip(layers, kept, strict=True):
            old = whole[at]
            layer.weight.data = old.weight[: layer.out_features, : layer.in_features].clone()
            layer.bias.data = old.bias[: layer.out_features].clone()
        fit(net, self.data.train, seed=self.seed, updates=updates, loss=imitate, noise=NOISE)
        return net

    def cost(self, hidden: Sequence[int]) -> float:
        """Weights and biases."""
        sizes = [64, *hidden, 10]
        return float(sum((before + 1) * after for before, after in pairwise(sizes)))

    def problem(self, space: "Space", kept: "Hidden", hidden: "Hidden") -> "Problem":
        """Accuracy of a child on the calibration part, after brief training, looked up if known."""
        from functools import cache

        from pointsman.claims.architectures import judged
        from pointsman.supernet.search import Problem

        @cache
        def quality(genotype: "Genotype") -> float:
            return judged(self.child(kept(genotype), hidden(genotype), CHILD_UPDATES), self.data)[0]

        return Problem(space, quality, lambda genotype: self.cost(hidden(genotype)), "parameters")


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    closed = min(
        figures[f"{row}: share of the gap closed"]
        for figures in measurements
        for row in ("removal", "shrinkage")
    )
    lost = mean(measurements, "teacher: accuracy") - mean(measurements, "student: accuracy")
    smaller = min(figures["student: times smaller"] for figures in measurements)
    return closed >= 0.6 and lost <= 0.02 and smaller >= 10


CLAIM = Claim(
    slug="n2n-learning",
    paper="N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning",
    year=2017,
    arxiv="1709.06030",
    level="supernet",
    claim="Two recurrent policies, one that removes layers and one that shrinks what is left, find "
    "a student that is more than ten times smaller than its teacher and about as accurate.",
    baseline="As many uniform draws from the same space; the teacher.",
    criterion="With every seed, in the mean over three policies each, the mean reward of the last "
    "10 of 60 updates closes at least 60% of the gap from uniform draws to the best of the table, "
    "both for removal and for shrinkage; and the student of both stages is at least 10 times "
    "smaller than the teacher with every seed, its test accuracy at most 2 points lower in the "
    "mean.",
    quick=quick,
    full=full,
    decide=decide,
    composition="bidirectional LSTM over layers · autoregressive LSTM over sizes · REINFORCE · "
    "children trained on the teacher's logits",
    entry="pointsman.supernet.transforming.policy_search",
    key={
        "gap closed, removal": "removal: share of the gap closed",
        "gap closed, shrinkage": "shrinkage: share of the gap closed",
        "student": "student: accuracy",
        "times smaller": "student: times smaller",
    },
)
