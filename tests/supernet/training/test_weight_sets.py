import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.parts import Cut, prefixes
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.space import Choice
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import (
    BalancedPaths,
    RandomBatches,
    WeightExperts,
    best_split,
    disagreement,
    largest_cut,
    several_weights,
    split_weights,
    train_supernet,
)


class Scaled(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * x


def body() -> nn.Module:
    torch.manual_seed(0)

    def edge(name: str) -> OneOf:
        return OneOf(name, {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "c": nn.Identity()})

    return nn.Sequential(edge("first"), nn.Tanh(), edge("second"), nn.Linear(4, 3))


def data() -> RandomBatches:
    torch.manual_seed(1)
    x = torch.randn(60, 4)
    return RandomBatches(x, x[:, :3].argmax(dim=1), size=30)


def test_several_sets_share_the_choices_and_nothing_else() -> None:
    one = Supernet(body())
    three = several_weights(one, 3, seed=7)
    assert three.space.names == ("weights", "first", "second")
    assert three.space.count() == 3 * one.space.count()
    x = torch.randn(5, 4)
    three.use((0, 1, 0))
    assert_close(three(x), one(x))
    first = three(x)
    three.use((2, 1, 0))
    assert not torch.allclose(three(x), first)
    assert_close(three.extract((2, 1, 0))(x), three(x))
    three(x).sum().backward()
    assert all(weight.grad is None for weight in one.parameters())


def test_copies_without_a_seed_start_equal() -> None:
    two = several_weights(Supernet(body()), 2)
    x = torch.randn(5, 4)
    two.use((0, 1, 1))
    first = two(x)
    two.use((1, 1, 1))
    assert_close(two(x), first)


def test_a_split_choice_decides_which_weights_are_used_and_may_be_split_again() -> None:
    net = Supernet(body())
    split = split_weights(net, "first", [[0, 2], [1]])
    assert split.space.count() == net.space.count()
    split = split_weights(split, "second", [[0], [1, 2]])
    assert split.space.names == ("second", "first")
    x = torch.randn(5, 4)
    with torch.no_grad():
        for weight in split.body.members[1].parameters():
            weight.zero_()
    split.use((0, 1))
    assert split(x).any()
    assert_close(split.extract((0, 1))(x), split(x))
    split.use((1, 1))
    assert not split(x).any()


def test_bad_splits_are_refused() -> None:
    net = Supernet(body())
    with pytest.raises(InputError, match="got 'third'"):
        split_weights(net, "third", [[0], [1, 2]])
    with pytest.raises(InputError, match=r"groups \[\[0\], \[1\]\] of 3 options"):
        split_weights(net, "first", [[0], [1]])


def test_the_largest_cut_finds_planted_groups() -> None:
    kinds = np.array([0, 1, 0, 1, 1])
    distance = np.where(kinds[:, None] == kinds, 0.1, 0.9) * (1 - np.eye(5))
    groups, across = largest_cut(distance)
    assert groups == ((0, 2), (1, 3, 4))
    assert across == pytest.approx(6 * 0.9)
    lonely = np.array([[0, 0.1, 0.8], [0.1, 0, 0.8], [0.8, 0.8, 0]])
    assert largest_cut(lonely, balanced=False)[0] == ((2,), (0, 1))


def test_options_that_pull_alike_agree_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    options = {"x": Scaled(1.0), "x again": Scaled(1.0), "minus x": Scaled(-1.0)}
    net = Supernet(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), OneOf("sign", options)))
    before = {name: each.clone() for name, each in net.state_dict().items()}
    batches = RandomBatches(torch.randn(40, 4), torch.randint(4, (40,)))
    distance = disagreement(net, "sign", batches, repeats=3)
    assert distance[0, 1] == pytest.approx(0.0, abs=1e-6)
    assert distance[0, 2] > 0.5
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())
    assert best_split(net, batches, repeats=3).choice == "sign"


def test_balanced_paths_keep_all_sets_equally_busy_and_unbalanced_ones_collapse() -> None:
    net = several_weights(Supernet(body()), 3, seed=0)

    def favourite(supernet: Supernet) -> float:
        return 1.0 if supernet.in_force[0] == 1 else 0.5

    shares = {}
    for balanced in (True, False):
        paths = BalancedPaths(net.space, favourite, balanced=balanced, seed=0)
        for step in range(150):
            drawn = paths.draw(step / 150)
            net.use(drawn[0].genotype)
            paths.learn(net, drawn, [0.0])
        shares[balanced] = paths.counts_PM.sum(dim=0) / 150
        torch.testing.assert_close(paths.probabilities(1.0).sum(dim=1), torch.ones(9))
    assert shares[True].max() < 0.5
    assert shares[False].max() > 0.6


def test_a_peaked_table_is_balanced_to_nearly_equal_marginals() -> None:
    paths = BalancedPaths(several_weights(Supernet(body()), 3).space, lambda net: 0.0)
    paths.quality_PM = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    plan = paths.probabilities(0.1)
    assert_close(plan.mean(dim=0), torch.full((3,), 1 / 3), atol=2e-2, rtol=0)
    assert paths.best_sets()[paths.paths[0]] == int(paths.quality_PM[0].argmax())


def test_balanced_paths_need_a_choice_of_weights() -> None:
    with pytest.raises(InputError, match="made by|several_weights"):
        BalancedPaths(Supernet(body()).space, lambda net: 0.0)


def sliced() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    dial = Dial(Choice("units", (2, 4, 8)))
    kept = prefixes((2, 4, 8), 8)
    ends = [(net[0], "weight", 0), (net[0], "bias", 0), (net[2], "weight", 1)]
    return Sliced(net, [Cut(module, name, dim, dial, kept) for module, name, dim in ends])


def test_one_expert_is_the_plain_supernet() -> None:
    plain, experts = sliced(), WeightExperts(sliced(), ["body.0"], experts=1)
    x = torch.randn(5, 4)
    for genotype in Supernet(plain).space.enumerate():
        Supernet(plain).use(genotype)
        Supernet(experts).use(genotype)
        assert_close(experts(x), plain(x))


@pytest.mark.parametrize("by_row", [False, True])
def test_the_merged_layer_is_the_weighted_sum_of_the_experts(by_row: bool) -> None:
    net = WeightExperts(sliced(), ["body.0"], experts=3, by_row=by_row, seed=1)
    part, layer = net.parts[0], net.body.body[0]
    shares_MR = part.router(net.features()).view(3, -1).softmax(dim=0)
    assert shares_MR.shape == (3, 8 if by_row else 1)
    x = torch.randn(5, 4)
    weights = [layer.weight, *(other[0] for other in part.others)]
    biases = [layer.bias, *(other[1] for other in part.others)]
    outputs = torch.stack([x @ w.T + b for w, b in zip(weights, biases, strict=True)])
    hidden = (shares_MR.unsqueeze(1) * outputs).sum(dim=0).relu()
    assert_close(net(x), net.body.body[2](hidden), atol=1e-6, rtol=1e-5)


def test_subnets_with_experts_learn_and_are_extracted_as_plain_layers() -> None:
    net = Supernet(WeightExperts(sliced(), ["body.0", "body.2"], experts=2, seed=1))
    batches = data()
    from pointsman.supernet.training import UniformPaths

    losses = train_supernet(net, batches, UniformPaths(net.space), updates=120, rate=2e-2)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    for genotype in net.space.enumerate():
        alone = net.extract(genotype)
        net.use(genotype)
        assert_close(alone(batches.x), net(batches.x), atol=1e-5, rtol=1e-5)
        assert [type(m) for m in alone.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert net.extract((0,))[0].out_features == 2


def test_experts_of_an_unknown_layer_are_refused() -> None:
    with pytest.raises(InputError, match="got 'body.9'"):
        WeightExperts(sliced(), ["body.9"])
    with pytest.raises(InputError, match="0 layers"):
        WeightExperts(sliced(), [])
    with pytest.raises(InputError, match="a ReLU"):
        WeightExperts(sliced(), ["body.1"])
