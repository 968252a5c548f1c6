"""Policies that draw genotypes and follow rewards."""

from functools import partial
from math import log, nan

import pytest
import torch

from pointsman.errors import InputError
from pointsman.supernet.search import Evaluation, Problem, search
from pointsman.supernet.space import Choice, Genotype, Space
from pointsman.supernet.transforming import (
    AutoregressivePolicy,
    CompressionReward,
    LayerwisePolicy,
    TreePolicy,
    cell_space,
    policy_search,
    shrunk,
)

SPACE = Space([Choice("a", (0, 1)), Choice("b", (0, 1, 2), ("a", (1,))), Choice("c", (0, 1))])
POLICIES = ((LayerwisePolicy, SPACE), (AutoregressivePolicy, SPACE), (TreePolicy, cell_space()))


@pytest.mark.parametrize(("policy", "space"), POLICIES)
def test_a_policy_counts_the_choices_that_matter(policy: type, space: Space) -> None:
    torch.manual_seed(0)
    network = policy(space)
    for weight in network.parameters():
        torch.nn.init.zeros_(weight)  # every softmax is uniform then
    draws = network.draw(20, torch.Generator().manual_seed(0))
    for genotype, found in zip(draws.genotypes, draws.log_probs.tolist(), strict=True):
        active = zip(space.choices, space.active(genotype), strict=True)
        assert found == pytest.approx(-sum(log(len(c.options)) for c, on in active if on), abs=1e-4)
    assert torch.allclose(draws.entropies, -draws.log_probs, atol=1e-4)
    assert all(genotype in space for genotype in draws.genotypes)


@pytest.mark.parametrize("policy", [LayerwisePolicy, AutoregressivePolicy])
def test_a_policy_follows_the_reward_and_repeats_nothing(policy: type) -> None:
    asked: list[Genotype] = []
    late: list[float] = []

    def quality(genotype: Genotype) -> float:
        asked.append(genotype)
        return float(genotype == (1, 2, 1))

    engine = partial(
        policy_search,
        policy=policy,
        reward=lambda child, update: child.quality,
        updates=40,
        rate=3e-2,
        drawn=lambda genotypes, rewards: late.extend(rewards),
    )
    search(Problem(SPACE, quality, lambda genotype: 1.0), engine, 100)
    assert len(asked) == len(set(asked))
    assert sum(late[-50:]) > 35  # by chance about 6


def test_the_same_seed_draws_the_same_and_the_budget_is_kept() -> None:
    problem = Problem(SPACE, lambda genotype: 0.5, sum, budget=2)
    engine = partial(
        policy_search, policy=LayerwisePolicy, reward=CompressionReward(1, 9), updates=9
    )
    one, other = (search(problem, engine, 100, seed=3) for _ in range(2))
    assert one == other
    assert max(each.cost for each in one) <= 2


def test_the_reward_of_compression() -> None:
    reward = CompressionReward(0.8, 100, least_quality=0.5)
    assert reward(Evaluation((0,), 0.8, 50), 0) == pytest.approx(0.75)
    assert reward(Evaluation((0,), 0.8, 100), 0) == 0
    assert reward(Evaluation((0,), nan, 1), 0) == -1
    assert reward(Evaluation((0,), 0.4, 50), 0) == pytest.approx(0.375)
    assert reward(Evaluation((0,), 0.4, 50), 15) == reward(Evaluation((0,), 0.4, 50), 99) == -1
    assert CompressionReward(0.8, 100, most_cost=40)(Evaluation((0,), 0.8, 50), 15) == -1
    assert (shrunk(10, 0.25), shrunk(10, 0.01)) == (2, 1)
    with pytest.raises(InputError, match="above 0"):
        CompressionReward(0, 1)


def test_trees_of_depth_two_are_all_there() -> None:
    assert cell_space().count() == 1 + 7**2 + 7**3 + 7**2
    with pytest.raises(InputError, match="depth of 2"):
        cell_space(depth=1)
