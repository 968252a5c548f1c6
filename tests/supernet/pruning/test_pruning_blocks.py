"""Masks evolved by block: counted exactly, chosen exactly, and cut to the size asked for."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.channels import channel_groups, narrow
from pointsman.supernet.pruning.blocks import (
    best_together,
    mask_space,
    masks_of,
    parameters_left,
    prune_by_blocks,
)
from pointsman.supernet.search.engines.random_search import random_search

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()),
        *(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
    )


def test_parameters_are_counted_as_they_are_left():
    model = network()
    groups = channel_groups(model, X)
    rng = np.random.default_rng(0)
    for _ in range(5):
        masks = masks_of(groups, mask_space(groups).mutate((1,) * 15, rng, 0.3))
        kept = {group: mask.nonzero().flatten().tolist() for group, mask in masks.items()}
        left = sum(parameter.numel() for parameter in narrow(model, kept).parameters())
        assert parameters_left(model, masks) == left


def test_the_joint_choice_is_the_best_of_all():
    rng = np.random.default_rng(1)
    for _ in range(20):
        fronts = [[tuple(rng.integers(0, 9, 2).tolist()) for _ in range(4)] for _ in range(3)]
        for needed in (0, 12, 20, 30):
            able = [
                taken
                for taken in product(range(4), repeat=3)
                if sum(f[at][0] for f, at in zip(fronts, taken, strict=True)) >= needed
            ]

            def worth(taken, fronts=fronts):
                return sum(f[at][1] for f, at in zip(fronts, taken, strict=True))

            found = best_together(fronts, needed)
            assert (found is None) == (not able)
            if found is not None:
                assert worth(found) == max(map(worth, able))


def test_a_network_is_cut_to_its_share_by_the_fronts_of_its_blocks():
    model = network()
    wanted = model(X).detach()
    groups = channel_groups(model, X)

    def quality(net):
        return -float((net(X) - wanted).square().mean())

    options = {"evaluations": 60, "engine": random_search}
    found = prune_by_blocks(model, [[group] for group in groups], quality, to=0.6, **options)
    left = sum(parameter.numel() for parameter in found.model.parameters())
    assert left == parameters_left(model, found.masks) <= 0.6 * 99
    for front in found.fronts:
        assert all(a.cost < b.cost and a.quality < b.quality for a, b in pairwise(front))
    with pytest.raises(UnreachableError, match="no masks of the fronts"):
        prune_by_blocks(model, [groups[:1]], quality, to=0.01, **options)
    with pytest.raises(InputError, match="at least one unit of '0'"):
        masks_of(groups, (0,) * 15)
