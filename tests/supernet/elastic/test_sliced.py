"""Modules that run on slices: equal to the smaller module, and whole again afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.parts import Blocks, Cut, Setting, centred, prefixes, rows_of
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.space import Choice
from pointsman.supernet.supernet import Supernet

WIDTHS, KERNELS, DEPTHS = (3, 8), (1, 3, 5), (0, 1, 2)


def network() -> Supernet:
    """Width through a depthwise convolution and a norm, its kernel, and depth."""
    torch.manual_seed(0)
    first, norm, last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
    middle = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    tail = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1))
    body = nn.Sequential(first, middle, norm, nn.ReLU(), last, tail)
    width, kernel, depth = (
        Dial(Choice(name, options))
        for name, options in (("width", WIDTHS), ("kernel", KERNELS), ("depth", DEPTHS))
    )
    kept = prefixes(WIDTHS, 8)
    cuts = [
        *(Cut(layer, "weight", 0, width, kept) for layer in (first, middle, norm)),
        *(Cut(layer, "bias", 0, width, kept) for layer in (first, norm)),
        *(Cut(norm, name, 0, width, kept) for name in ("running_mean", "running_var")),
        Cut(last, "weight", 1, width, kept),
        *(Cut(middle, "weight", dim, kernel, centred(KERNELS, 5)) for dim in (2, 3)),
    ]
    return Supernet(Sliced(body, [*cuts, Blocks(tail, depth, prefixes(DEPTHS, 2))]))


def test_every_subnet_equals_its_extracted_network_before_and_after_training() -> None:
    net = network()
    x = torch.randn(4, 3, 7, 6)
    for genotype in net.space.enumerate():
        net.use(genotype)
        net.train()(x).square().mean().backward()
        net.eval()
        plain = net.extract(genotype)
        assert not any(type(m).__module__.startswith("pointsman.") for m in plain.modules())
        torch.testing.assert_close(plain(x), net(x), rtol=1e-6, atol=1e-6)
    assert plain[1].groups == 8


def test_a_smaller_subnet_is_the_network_one_would_have_written() -> None:
    net = network().eval()
    plain = net.extract(net.space.encode({"width": 3, "kernel": 3, "depth": 1}))
    same = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1),
        nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 1),
        nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())),
    ).eval()
    same.load_state_dict(plain.state_dict())
    assert repr(same) == repr(plain)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(same(x), plain(x))


def test_the_module_is_whole_again_after_a_call_even_one_that_fails() -> None:
    net = network().eval()
    before = {name: (id(p), p.shape) for name, p in net.named_parameters()}
    text = repr(net)
    net.use((0, 0, 0))
    net(torch.randn(1, 3, 5, 5))
    with pytest.raises(RuntimeError):
        net(torch.randn(1, 2, 5, 5))
    assert {name: (id(p), p.shape) for name, p in net.named_parameters()} == before
    assert repr(net) == text


def test_gradients_stay_inside_the_slice() -> None:
    net = network()
    net.use(net.space.encode({"width": 3, "kernel": 3, "depth": 2}))
    net(torch.randn(4, 3, 5, 5)).sum().backward()
    grad = net.body.body[1].weight.grad
    assert grad is not None
    assert grad[:3, :, 1:4, 1:4].any()
    inside = torch.zeros_like(grad)
    inside[:3, :, 1:4, 1:4] = 1
    assert not (grad * (1 - inside)).any()


def test_statistics_of_units_that_are_no_neighbours_are_kept() -> None:
    norm, width = nn.BatchNorm1d(6), Dial(Choice("width", (1, 2)))
    kept = rows_of([(0, 2), (4, 5)], (1, 2), 6)  # rows 1 and 3 belong to no unit
    assert kept[0].tolist() == [True, True, True, True, False, False]
    kept = torch.tensor([[True, False, True, False, False, True], [True] * 6])
    names = ("weight", "bias", "running_mean", "running_var")
    net = Supernet(Sliced(norm, [Cut(norm, name, 0, width, kept) for name in names]))
    net.use((0,))
    net.train()(torch.randn(50, 3) + 7)
    assert norm.running_mean is not None
    assert (norm.running_mean[kept[0]] > 0.5).all()
    assert not norm.running_mean[~kept[0]].any()


def test_a_mixture_is_the_weighted_sum_of_the_padded_slices() -> None:
    layer, width = nn.Linear(5, 4), Dial(Choice("width", (1, 3, 4)))
    kept = prefixes((1, 3, 4), 4)
    net = Supernet(Sliced(layer, [Cut(layer, "weight", 0, width, kept)]))
    width.mixture = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    x = torch.randn(7, 5)
    expected = sum(
        share * functional.linear(x, layer.weight * rows[:, None])
        for share, rows in zip(width.mixture, kept.float(), strict=True)
    )
    torch.testing.assert_close(net(x), expected + layer.bias)
    net(x).sum().backward()
    assert width.mixture.grad is not None
    assert width.mixture.grad.all()


def test_two_mixtures_multiply() -> None:
    layer = nn.Conv2d(2, 4, 3, padding=1, bias=False)
    width, kernel = Dial(Choice("width", (2, 4))), Dial(Choice("kernel", (1, 3)))
    cuts = [
        Cut(layer, "weight", 0, width, prefixes((2, 4), 4)),
        *(Cut(layer, "weight", dim, kernel, centred((1, 3), 3)) for dim in (2, 3)),
    ]
    net = Supernet(Sliced(layer, cuts))
    x = torch.randn(2, 2, 5, 5)
    width.mixture, kernel.mixture = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    mixed = net(x)
    net.use((0, 0))
    torch.testing.assert_close(mixed[:, :2], net(x))
    assert not mixed[:, 2:].any()


def test_a_group_of_channels_leaves_a_grouped_convolution_with_its_group() -> None:
    layer, width = nn.Conv1d(8, 4, 3, padding=1, groups=2), Dial(Choice("width", (1, 2)))
    cuts = [Cut(layer, name, 0, width, prefixes((2, 4), 4)) for name in ("weight", "bias")]
    net = Supernet(Sliced(layer, cuts))
    plain = net.extract((0,))
    assert (plain.groups, plain.in_channels, plain.out_channels) == (1, 4, 2)
    x = torch.randn(2, 8, 5)
    torch.testing.assert_close(plain(x[:, :4]), layer(x)[:, :2])


def test_tied_weights_stay_tied() -> None:
    body = nn.ModuleList([nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)])
    body[1].weight = body[0].weight
    width = Dial(Choice("width", (2, 6)))
    cuts = [Cut(module, "weight", 1, width, prefixes((2, 6), 6)) for module in body]
    plain = Supernet(Sliced(body, cuts)).extract((0,))
    assert plain[0].weight is plain[1].weight
    assert plain[1].in_features == plain[0].embedding_dim == 2


def test_a_setting_follows_its_dial_and_goes_back() -> None:
    class Scaled(nn.Linear):
        factor = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.factor

    layer, dial = Scaled(2, 2), Dial(Choice("factor", (1, 3)))
    net = Supernet(Sliced(layer, [Setting(layer, "factor", dial, (1, 3))]))
    x = torch.randn(3, 2)
    whole = net(x)
    net.use((0,))
    torch.testing.assert_close(net(x), whole / 3)
    assert layer.factor == 3
    assert net.extract((0,)).factor == 1


def test_a_copy_has_dials_of_its_own() -> None:
    net = network().eval()
    other = copy.deepcopy(net)
    other.use((0, 0, 0))
    assert net.in_force == (1, 2, 2)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(other(x), net.extract((0, 0, 0))(x))


@pytest.mark.parametrize(
    ("layer", "tensor", "dim", "what"),
    [
        (nn.LSTM(3, 4), "weight_ih_l0", 1, "LSTM cannot be cut"),
        (nn.Conv2d(1, 1, 3, padding="same"), "weight", 2, "padding as a number"),
        (nn.Conv2d(1, 1, 3), "weight", 2, "give it half of its kernel"),
    ],
)
def test_layers_that_cannot_be_cut_are_refused(
    layer: nn.Module, tensor: str, dim: int, what: str
) -> None:
    dial = Dial(Choice("it", (1, 3)))
    net = Supernet(Sliced(layer, [Cut(layer, tensor, dim, dial, centred((1, 3), 3))]))
    net.use((0,))
    with pytest.raises(InputError, match=what):
        net(torch.zeros(1, 1, 3, 3))
