"""Layers as products of thin factors."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.low_rank import LowRank, make_low_rank, rank_within


def layers_and_inputs() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (nn.Linear(7, 5), torch.randn(2, 3, 7)),
        (nn.Linear(5, 7, bias=False), torch.randn(3, 5)),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(2, 3, 9, 8)),
        (nn.Conv2d(4, 3, (3, 1), dilation=2, padding="same", bias=False), torch.randn(2, 4, 6, 6)),
    ]


@pytest.mark.parametrize(("layer", "x"), layers_and_inputs())
def test_at_full_rank_a_layer_gives_what_it_gave(layer: nn.Module, x: torch.Tensor) -> None:
    assert_close(LowRank(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "x"), layers_and_inputs())
def test_plain_layers_give_the_same_outputs(layer: nn.Module, x: torch.Tensor) -> None:
    low = LowRank(layer, 2)
    plain = low.plain()
    assert_close(plain(x), low(x), rtol=1e-4, atol=1e-5)
    assert {type(module) for module in plain} == {type(layer)}
    assert plain[0].weight.shape[0] == low.rank == 2


def test_the_kept_part_is_the_nearest_matrix_of_its_rank() -> None:
    layer = nn.Linear(8, 6)
    values = torch.linalg.svdvals(layer.weight.detach())
    lost = torch.linalg.matrix_norm(LowRank(layer, 3).matrix - layer.weight)
    assert_close(lost, values[3:].norm(), rtol=1e-4, atol=1e-6)


def test_the_rank_within_a_threshold_is_the_smallest_that_keeps_the_tail_below_it() -> None:
    values = torch.tensor([4.0, 3.0, 0.4, 0.3])
    norm = values.norm()
    assert rank_within(values, 0.0) == 4
    assert rank_within(values, float(0.31 / norm)) == 3
    assert rank_within(values, float(0.29 / norm)) == 4
    assert rank_within(values, float(0.51 / norm)) == 2  # 0.4 and 0.3 together: 0.5
    assert rank_within(values, 0.99) == 1
    assert rank_within(values, 0.99, least=2) == 2
    assert rank_within(torch.zeros(3), 0.1, least=2) == 2


def test_a_network_is_changed_in_a_copy_and_named_layers_are_kept() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    low = make_low_rank(net, keep=["2"])
    x = torch.randn(2, 1, 4, 4)
    assert_close(low(x), net(x), rtol=1e-4, atol=1e-5)
    assert isinstance(low[0], LowRank)
    assert isinstance(low[2], nn.Linear)
    assert isinstance(net[0], nn.Conv2d)
    assert not low[0].training


def test_a_layer_alone_becomes_low_rank() -> None:
    assert isinstance(make_low_rank(nn.Linear(3, 3), 1), LowRank)


def test_bad_input_is_refused() -> None:
    grouped = nn.Conv2d(4, 4, 3, groups=2)
    with pytest.raises(InputError, match="without groups"):
        LowRank(grouped)
    with pytest.raises(InputError, match="at least 1, got 0"):
        LowRank(nn.Linear(2, 2), 0)
    with pytest.raises(InputError, match="'head', which is none"):
        make_low_rank(nn.Sequential(nn.Linear(2, 2)), keep=["head"])
    with pytest.raises(InputError, match="got none"):
        make_low_rank(grouped)
    with pytest.raises(InputError, match=r"lies in \[0, 1\)"):
        rank_within(torch.ones(2), 1.0)
