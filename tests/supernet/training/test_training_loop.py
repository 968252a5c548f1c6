import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import (
    FairPaths,
    InheritedQuality,
    LoaderBatches,
    Path,
    RandomBatches,
    SandwichPaths,
    UniformPaths,
    ranking,
    train_supernet,
)


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("boom")


def network(**more: nn.Module) -> Supernet:
    torch.manual_seed(0)
    options = {"narrow": nn.Linear(4, 8), "tanh": nn.Sequential(nn.Linear(4, 8), nn.Tanh()), **more}
    return Supernet(nn.Sequential(OneOf("first", options), nn.BatchNorm1d(8), nn.Linear(8, 3)))


def data(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(rows, 4)
    return x, x[:, :3].argmax(dim=1)


def test_training_lowers_the_loss_and_ends_in_evaluation_mode_with_the_last_options() -> None:
    net = network()
    losses = train_supernet(net, RandomBatches(*data()), UniformPaths(net.space), updates=150)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert not net.training
    assert net.in_force == (1,)


def test_only_the_paths_drawn_are_trained() -> None:
    net = network()
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    only_first = UniformPaths(net.space, accept=lambda genotype: genotype == (0,))
    train_supernet(net, RandomBatches(*data()), only_first, updates=3)
    moved = {n for n, w in net.named_parameters() if not torch.equal(w, before[n])}
    assert moved == {n for n in before if "operations.1" not in n}


def test_the_same_seeds_give_the_same_weights() -> None:
    def trained() -> torch.Tensor:
        net = network()
        train_supernet(net, RandomBatches(*data()), UniformPaths(net.space), updates=5)
        return nn.utils.parameters_to_vector(net.parameters())

    assert_close(trained(), trained(), rtol=0, atol=0)


def test_losses_of_several_paths_add_up_and_carry_their_weights() -> None:
    class Both:
        def draw(self, done: float) -> list[Path]:
            return [Path((0,), 2.0), Path((1,), 0.5)]

        def learn(self, supernet: Supernet, paths: object, losses: list[float]) -> None:
            self.seen = losses
            self.grad = supernet.body[2].bias.grad.clone()

    x, y = data(8)
    net, both = network(), Both()
    train_supernet(net, LoaderBatches([(x, y)]), both, updates=1)
    again = network()
    total = torch.zeros(())
    for path in both.draw(0):
        again.use(path.genotype)
        total = total + path.weight * nn.functional.cross_entropy(again(x), y)
    total.backward()
    assert len(both.seen) == 2
    assert_close(both.grad, again.body[2].bias.grad)


def test_weights_of_examples_scale_their_losses() -> None:
    x, y = data(8)
    batches = RandomBatches(x, y, size=8)
    net = network()
    batch = batches.take(torch.arange(8), torch.zeros(8))

    class Fixed:
        def draw(self, done: float) -> object:
            return batch

        def learn(self, batch: object, outputs: torch.Tensor) -> None:
            assert outputs.shape == (8, 3)
            assert not outputs.requires_grad

    assert train_supernet(net, Fixed(), UniformPaths(net.space), updates=1) == [0.0]


def test_distillation_teaches_the_smaller_by_the_largest() -> None:
    net = network()
    x, y = data()
    wrong = (y + 1) % 3  # the targets of everyone but the teacher are not looked at

    class Swapped(SandwichPaths):
        pass

    losses = train_supernet(
        net, RandomBatches(x, wrong), Swapped(net.space), updates=100, distil=True
    )
    assert all(math.isfinite(loss) for loss in losses)
    right = InheritedQuality(net, x, wrong, recalibrate=[x])
    assert right((0,)) > 0.8
    assert right((1,)) > 0.8


def test_a_path_whose_forward_breaks_is_named() -> None:
    net = network(broken=Broken())
    only = UniformPaths(net.space, accept=lambda genotype: genotype == (2,))
    with pytest.raises(InputError, match="first=broken cannot: RuntimeError: boom"):
        train_supernet(net, RandomBatches(*data()), only, updates=1)


def test_a_loss_that_is_no_number_is_refused() -> None:
    net, (x, y) = network(), data()
    with pytest.raises(InputError, match="a finite number, got nan for first="):
        train_supernet(net, RandomBatches(x * math.nan, y), UniformPaths(net.space), updates=1)


def test_no_update_or_no_example_is_refused() -> None:
    net, (x, y) = network(), data()
    with pytest.raises(InputError, match="at least one update"):
        train_supernet(net, RandomBatches(x, y), FairPaths(net.space), updates=0)
    with pytest.raises(InputError, match="0 inputs"):
        RandomBatches(x[:0], y[:0])


def test_a_loader_starts_anew_and_one_that_is_spent_says_so() -> None:
    batches = LoaderBatches([(torch.zeros(1), torch.zeros(1)), (torch.ones(1), torch.ones(1))])
    assert [float(batches.draw(0.0).x) for _ in range(5)] == [0, 1, 0, 1, 0]
    spent = LoaderBatches(pair for pair in [(torch.zeros(1), torch.zeros(1))])
    spent.draw(0.0)
    with pytest.raises(InputError, match="this one gave none"):
        spent.draw(0.5)


def test_statistics_are_gathered_for_each_subnet_and_put_back() -> None:
    net, (x, y) = network(), data()
    train_supernet(net, RandomBatches(x, y), UniformPaths(net.space), updates=30)
    before = net.body[1].running_mean.clone()
    quality = InheritedQuality(net, x, y, recalibrate=[x[:30], x[30:]])
    value = quality((0,))
    assert_close(net.body[1].running_mean, before, rtol=0, atol=0)
    net.use((0,))
    recalibrate(net, [x[:30], x[30:]])
    assert_close(net.body[1].running_mean, net.body[0](x).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert value == float((net(x).argmax(dim=1) == y).float().mean())
    assert net.body[1].momentum == 0.1


def test_ranking_asks_for_every_genotype_of_the_truth() -> None:
    found, values = ranking(lambda genotype: -genotype[0], {(0,): 1.0, (1,): 0.5, (2,): 0.2})
    assert found.kendall == found.spearman == 1.0
    assert values == {(0,): 0, (1,): -1, (2,): -2}
