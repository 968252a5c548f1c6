"""Nested networks: every prefix is a network of its own."""

import pytest
import torch
from torch import nn

from pointsman.errors import InputError
from pointsman.supernet import Nested, PrefixBatchNorm2d, PrefixLinear

WIDTHS = (0.25, 0.5, 1.0)


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def mlp():
    return nn.Sequential(
        nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


CASES = {"mlp": (mlp, (5, 6)), "convnet": (convnet, (5, 3, 6, 6))}


@pytest.fixture(params=CASES)
def case(request):
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return Nested(make(), WIDTHS), torch.randn(shape)


def test_the_whole_width_equals_the_network_it_was_made_of():
    torch.manual_seed(0)
    plain, x = convnet().eval(), torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(Nested(plain, WIDTHS).eval()(x), plain(x))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_equals_its_extracted_plain_network(case, width):
    nested, x = case
    for other in WIDTHS:  # give every width batch statistics of its own
        nested.train()(x, width=other)
    plain = nested.eval().extract(width)
    torch.testing.assert_close(plain.eval()(x), nested(x, width=width), atol=1e-6, rtol=1e-6)
    assert not any(isinstance(m, PrefixLinear | PrefixBatchNorm2d) for m in plain.modules())


def test_an_extracted_network_has_weights_of_its_own(case):
    nested, x = case
    before = nested.eval()(x, width=0.5)
    for parameter in nested.extract(0.5).parameters():
        parameter.data.zero_()
    torch.testing.assert_close(nested(x, width=0.5), before)


def test_narrower_networks_are_smaller_and_nested():
    nested = Nested(mlp(), WIDTHS)
    small, large = nested.extract(0.25), nested.extract(0.5)
    torch.testing.assert_close(small[0].weight, large[0].weight[: len(small[0].weight)])
    assert small[0].out_features == 4
    assert small[-1].out_features == large[-1].out_features == 3


def test_gradients_stay_inside_the_prefix():
    nested = Nested(mlp(), WIDTHS)
    nested(torch.randn(7, 6), width=0.25).sum().backward()
    hidden = nested.body[3].weight.grad
    assert hidden[:3, :4].abs().sum() > 0
    assert hidden[3:].abs().sum() == 0
    assert hidden[:, 4:].abs().sum() == 0


def test_each_width_keeps_batch_statistics_of_its_own():
    nested = Nested(convnet(), WIDTHS).train()
    norm = nested.body[1]
    nested(torch.randn(8, 3, 6, 6) + 3, width=0.5)
    assert norm.means[WIDTHS.index(0.5), :4].abs().sum() > 0
    assert norm.means[WIDTHS.index(0.25)].abs().sum() == 0
    assert norm.means[WIDTHS.index(1.0)].abs().sum() == 0


def test_weights_and_statistics_survive_a_state_dict(case):
    nested, x = case
    nested.train()(x, width=0.5)
    again = Nested(CASES["mlp" if x.ndim == 2 else "convnet"][0](), WIDTHS)
    again.load_state_dict(nested.state_dict())
    for width in WIDTHS:
        torch.testing.assert_close(again.eval()(x, width=width), nested.eval()(x, width=width))


@pytest.mark.parametrize(
    ("widths", "said"),
    [((0.5,), "width 1.0"), ((0.0, 1.0), "shares"), ((0.5, 0.5, 1.0), "distinct")],
)
def test_widths_are_distinct_shares_with_the_whole_among_them(widths, said):
    with pytest.raises(InputError, match=said):
        Nested(mlp(), widths)


def test_a_width_that_was_not_built_is_refused():
    with pytest.raises(InputError, match="has the widths"):
        Nested(mlp(), WIDTHS)(torch.randn(2, 6), width=0.3)


def test_a_network_without_a_hidden_size_is_refused():
    with pytest.raises(InputError, match="hidden size"):
        Nested(nn.Sequential(nn.Linear(3, 2)), WIDTHS)


def test_grouped_convolutions_are_refused():
    layers = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1))
    with pytest.raises(InputError, match="groups=2"):
        Nested(layers, WIDTHS)
