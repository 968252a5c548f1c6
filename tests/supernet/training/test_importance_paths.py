import numpy as np
import pytest
import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.space import Choice, Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import (
    ImportanceBatches,
    ImportancePaths,
    LevelPaths,
    Path,
    RandomBatches,
    train_supernet,
)
from pointsman.supernet.training.importance import gradient_norm, mixed_with_uniform


def test_probabilities_move_from_uniform_to_proportional() -> None:
    amounts = np.array([1.0, 3.0, 0.0])
    np.testing.assert_allclose(mixed_with_uniform(amounts, 0.0), [1 / 3] * 3)
    np.testing.assert_allclose(mixed_with_uniform(amounts, 1.0), [0.25, 0.75, 0.0])
    np.testing.assert_allclose(mixed_with_uniform(np.zeros(2), 1.0), [0.5, 0.5])


def supernet() -> Supernet:
    torch.manual_seed(0)
    edge = {"large": nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 3)), "none": nn.Linear(4, 3)}
    for weight in edge["none"].parameters():
        weight.requires_grad_(False)
    return Supernet(nn.Sequential(OneOf("edge", edge), nn.Linear(3, 3)))


def batches(reweight: bool = False) -> ImportanceBatches:
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    y = x[:, :3].argmax(dim=1)
    y[:4] = (y[:4] + 1) % 3  # wrong labels stay hard
    return ImportanceBatches(RandomBatches(x, y, size=20), reweight=reweight)


def test_paths_follow_the_gradient_norms_of_their_options() -> None:
    net = supernet()
    paths = ImportancePaths(net.space, period=5, most=0.8)
    train_supernet(net, batches().examples, paths, updates=60)
    large, none = paths.probabilities[0]
    assert large > none
    assert none > 0.2 * 0.5 - 1e-9  # a share of 1 - most stays uniform


def test_the_norm_of_an_option_is_that_of_its_own_matrices() -> None:
    net = supernet()
    net.use((0,))
    net(torch.ones(2, 4)).sum().backward()
    own = net.body[0].operations[0]
    squares = sum(float(layer.weight.grad.square().sum()) for layer in own)
    assert gradient_norm(net, net.dials[0]) == pytest.approx(squares**0.5)
    net.use((1,))
    assert gradient_norm(net, net.dials[0]) == 0


def test_reweighted_paths_keep_the_expected_gradient() -> None:
    space = Space([Choice("a", (1, 2)), Choice("b", (1, 2, 3))])
    paths = ImportancePaths(space, reweight=True)
    paths.probabilities = [np.array([0.9, 0.1]), np.array([0.2, 0.3, 0.5])]
    expected = np.zeros(6)
    for genotype in space.enumerate():
        chance = paths.probabilities[0][genotype[0]] * paths.probabilities[1][genotype[1]]
        weight = 1 / (6 * chance)
        expected[genotype[0] * 3 + genotype[1]] = chance * weight
    drawn = paths.draw(0.0)[0]
    at, to = drawn.genotype
    chance = paths.probabilities[0][at] * paths.probabilities[1][to]
    assert drawn.weight == pytest.approx(1 / (6 * chance))
    np.testing.assert_allclose(expected, 1 / 6)


def test_one_distribution_needs_equal_options() -> None:
    space = Space([Choice("a", (1, 2)), Choice("b", (1, 2, 3))])
    with pytest.raises(InputError, match="take shared=False"):
        ImportancePaths(space, shared=True)


def test_hard_examples_are_drawn_more_often() -> None:
    net, examples = supernet(), batches()
    train_supernet(net, examples, ImportancePaths(net.space), updates=150)
    assert examples.probabilities[:4].mean() > 2 * examples.probabilities[4:].mean()
    assert float(examples.probabilities.sum()) == pytest.approx(1.0)


def test_reweighted_examples_carry_their_inverse_probability() -> None:
    examples = batches(reweight=True)
    examples.probabilities = torch.arange(40, dtype=torch.float64) + 1
    examples.probabilities /= examples.probabilities.sum()
    batch = examples.draw(0.0)
    expected = 1 / (40 * examples.probabilities[batch.rows])
    torch.testing.assert_close(batch.weight, expected.float())


SPACE = Space([Choice(f"layer {at}", (8, 16, 24, 32)) for at in range(6)])


def cost(genotype: tuple[int, ...]) -> float:
    return float(sum(genotype))


@pytest.mark.parametrize("enumerated", [True, False])
def test_levels_are_equally_likely_where_uniform_options_are_not(
    enumerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not enumerated:
        monkeypatch.setattr("pointsman.supernet.training.levels.ENUMERATED", 10)
    paths = LevelPaths(SPACE, cost, levels=3, shift=False, seed=0)
    assert (paths.edges[0], paths.edges[-1]) == (0, 18)
    drawn = [paths.level_of(cost(paths.draw(0.0)[0].genotype)) for _ in range(300)]
    counts = np.bincount(drawn, minlength=3)
    assert (abs(counts - 100) < 3 * (300 * 2 / 9) ** 0.5).all()


def test_a_level_without_members_is_left_out() -> None:
    two = Space([Choice("only", (1, 2))])
    paths = LevelPaths(two, lambda genotype: 100.0 * genotype[0], levels=5)
    assert paths.levels == [0, 4]
    one = LevelPaths(Space([Choice("only", (1,))]), lambda genotype: 7.0)
    assert one.draw(0.0) == [Path((0,))]


def test_the_probability_shifts_to_a_level_that_still_improves() -> None:
    paths = LevelPaths(SPACE, cost, levels=3, period=10, floor=0.3, seed=0)
    loss = 2.0
    for _ in range(200):
        path = paths.draw(0.0)[0]
        improving = paths.level_of(cost(path.genotype)) == 2
        loss *= 0.98 if improving else 1.0
        paths.learn(supernet(), [path], [loss if improving else 1.0])
    assert paths.probabilities[2] == pytest.approx(0.3 / 3 + 0.7)
    assert paths.probabilities.sum() == pytest.approx(1.0)


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="levels=0"):
        LevelPaths(SPACE, cost, levels=0)
