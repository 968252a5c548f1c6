"""Paths through shared modules: exact limits of loosely synchronised training, and routing."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe.parallel import Paths, PathTraining, nearest_shard, reshard, shard_centres


def model(*counts: int) -> Paths:
    torch.manual_seed(0)
    return Paths([[nn.Linear(3, 3) for _ in range(count)] for count in counts]).double()


class Batches:
    """A loss on batches that are drawn in turn from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, net: nn.Module) -> Tensor:
        x = torch.randn(8, 3, generator=self.generator, dtype=torch.float64)
        loss: Tensor = (net(x) - x.flip(1)).square().mean()
        return loss


def state(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def test_a_path_runs_its_modules() -> None:
    net, x = model(2, 3), torch.randn(4, 3, dtype=torch.float64)
    assert net.paths() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for path in net.paths():
        assert_close(net(x, path), net.extract(path)(x))
    with pytest.raises(InputError, match=r"one of \(2, 3\) modules a level, got \(2, 0\)"):
        net(x, (2, 0))
    with pytest.raises(InputError, match="each level a module"):
        Paths([[nn.Identity()], []])


def test_one_path_is_diloco_with_one_worker() -> None:
    net = model(1, 1)
    worker = net.extract((0, 0))
    inner = torch.optim.AdamW(worker.parameters(), 1e-2, weight_decay=0.1)
    theta, momentum = state(net), [torch.zeros_like(w) for w in net.parameters()]
    training, loss, same = (
        PathTraining(net, inner_rate=1e-2, decay=0.1, outer_rate=0.5, momentum=0.8),
        Batches(1),
        Batches(1),
    )
    for _ in range(4):
        training.round({(0, 0): (3.0, loss)}, 5)
        with torch.no_grad():
            for mine, old in zip(worker.parameters(), theta, strict=True):
                mine.copy_(old)
        for _ in range(5):
            inner.zero_grad()
            same(worker).backward()
            inner.step()
        for at, mine in enumerate(worker.parameters()):
            delta = theta[at] - mine.detach()
            momentum[at] = 0.8 * momentum[at] + delta
            theta[at] = theta[at] - 0.5 * (delta + 0.8 * momentum[at])
        for found, wanted in zip(net.parameters(), theta, strict=True):
            assert_close(found.detach(), wanted, rtol=0, atol=1e-12)


def test_a_module_moves_by_the_weighted_mean_of_its_paths_times_the_root_of_their_number() -> None:
    net = model(1, 2)
    sizes = {(0, 0): 3.0, (0, 1): 1.0}
    before = copy.deepcopy(net)
    alone = {}
    for path in sizes:
        one = copy.deepcopy(net)
        training = PathTraining(one, outer_rate=1.0, momentum=0.0)
        training.round({path: (1.0, Batches(path[1]))}, 4)
        alone[path] = one
    PathTraining(net, outer_rate=1.0, momentum=0.0).round(
        {path: (size, Batches(path[1])) for path, size in sizes.items()}, 4
    )

    def change(one: Paths, level: int, at: int) -> list[Tensor]:
        return [
            old - new
            for old, new in zip(
                state(before._module(level, at)), state(one._module(level, at)), strict=True
            )
        ]

    for mine, first, second in zip(
        change(net, 0, 0), change(alone[0, 0], 0, 0), change(alone[0, 1], 0, 0), strict=True
    ):
        assert_close(mine, 2**0.5 * (3 * first + second) / 4, rtol=0, atol=1e-12)
    for at in (0, 1):
        for mine, own in zip(change(net, 1, at), change(alone[0, at], 1, at), strict=True):
            assert_close(mine, own, rtol=0, atol=1e-12)


def test_modules_off_the_trained_paths_stay() -> None:
    net = model(2, 2)
    before = copy.deepcopy(net)
    training = PathTraining(net)
    for _ in range(2):
        training.round({(0, 1): (1.0, Batches(0))}, 3)
    for level, at in ((0, 1), (1, 0)):
        for old, new in zip(
            state(before._module(level, at)), state(net._module(level, at)), strict=True
        ):
            assert torch.equal(old, new)
    with pytest.raises(InputError, match="size is above 0, got 0"):
        training.round({(0, 0): (0, Batches(0))}, 1)


def test_documents_go_to_their_cluster_and_later_to_their_best_path() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    kind = rng.integers(3, size=60)
    features = centres[kind] + 0.3 * rng.standard_normal((60, 2))
    found = shard_centres(features, 3, seed=0)
    shards = nearest_shard(features, found)
    assert all(len(set(kind[shards == shard])) == 1 for shard in range(3))
    best = (kind + 1) % 3  # another path than its own turns out to suit each kind
    losses = 1.0 - np.eye(3)[best]
    assert (reshard(features[:30], losses[:30], features[30:]) == best[30:]).all()
    assert (reshard(features, np.array([[0.0, 1.0]] * 60), features) == 0).all()
    with pytest.raises(InputError, match="2 documents make 1 to as many shards, got 3"):
        shard_centres(features[:2], 3, seed=0)
