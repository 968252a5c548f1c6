"""Edits that keep the function of a trained layer."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.transforming import (
    OPERATIONS,
    cell_space,
    edited,
    part_of,
    replace_identity,
    replicated,
    split,
    transformed,
    with_node,
)

LAYERS = {
    "convolution": nn.Conv2d(8, 8, 3, padding=1),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "grouped": nn.Conv2d(8, 16, 3, padding=1, groups=4),
    "identity": nn.Identity(),
    "pooling": nn.MaxPool2d(3, 1, 1),
    "separable": OPERATIONS["separable3x3"](8),
    "ends depthwise": nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1, groups=8))
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_replication_split_and_nodes_keep_the_outputs(name: str) -> None:
    layer = LAYERS[name].eval()
    x = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    halves = split(layer, 2, expected.shape[1])
    for edit in (replicated(layer, 2), replicated(layer, 3), halves, replicated(halves, 2)):
        assert_close(edit(x), expected, rtol=0, atol=1e-5)
    assert_close(with_node(layer)(x), expected)
    assert halves.branches[1](x).shape[1] == expected.shape[1] // 2


def test_a_linear_layer_splits_into_uneven_parts() -> None:
    layer, x = nn.Linear(5, 7), torch.randn(3, 5)
    assert_close(split(layer, 3, 7)(x), layer(x))


def test_noise_makes_copies_differ_and_the_first_stays() -> None:
    layer = nn.Linear(4, 4)
    first, second = replicated(layer, 2, noise=6e-3).branches
    assert torch.equal(first.weight, layer.weight)
    assert 0 < (second.weight - layer.weight).abs().max() < 0.05


def test_only_an_identity_is_replaced_and_the_function_changes() -> None:
    model = with_node(nn.Linear(4, 4))
    before, x = model(torch.ones(1, 4)), torch.ones(1, 4)
    with pytest.raises(InputError, match="only an identity"):
        replace_identity(model, "0", nn.ReLU())
    replace_identity(model, "1", nn.Linear(4, 4))
    assert not torch.allclose(model(x), before)


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InputError, match="LSTM"):
        part_of(nn.LSTM(4, 4), 0, 2)
    with pytest.raises(InputError, match="groups of 4"):
        part_of(nn.Conv2d(8, 8, 1, groups=2), 0, 3)
    with pytest.raises(InputError, match="from 1 to 4 branches"):
        split(nn.Linear(4, 4), 5, 4)


def test_a_tree_without_replaced_identities_is_the_layer_at_every_depth() -> None:
    layer = LAYERS["convolution"]
    space = cell_space(depth=3)
    options = {
        "cell.merge": "concat 2",
        "cell.0.insert": True,
        "cell.0.node.merge": "add 3",
        "cell.0.node.1.insert": True,
        "cell.1.insert": True,
        "cell.1.node.merge": "concat 2",
    }
    x = torch.randn(2, 8, 5, 5)
    assert_close(transformed(layer, options, 8)(x), layer(x), rtol=0, atol=1e-5)
    options["cell.1.node.0.operation"] = "conv1x1"
    assert not torch.allclose(transformed(layer, options, 8).eval()(x), layer(x), atol=1e-3)
    assert set(options) <= set(space.names)


def test_an_edit_leaves_the_model_it_came_from_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    changed = edited(model, ["0"], lambda layer: replicated(layer, 2))
    assert isinstance(model[0], nn.Linear)
    assert not isinstance(changed[0], nn.Linear)
    assert_close(changed(torch.ones(1, 4)), model(torch.ones(1, 4)))
