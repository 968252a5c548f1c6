"""Bits of weights and of inputs as choices."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic.quantised import fake_quantise
from pointsman.supernet.graphs import format_choice, format_costs, model_bits, searchable_formats
from pointsman.supernet.relax import Relaxation
from pointsman.supernet.supernet import Supernet


@pytest.fixture
def x():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def formatted(formats=(1, 2, 4, 8, 32), *, inputs=True):
    body = network()
    sizes = searchable_formats(body, formats, inputs=inputs)
    return Supernet(body), sizes


def test_each_layer_has_a_choice_for_its_weight_and_one_for_its_inputs():
    supernet, sizes = formatted()
    assert set(supernet.space.names) == {
        f"{at} {what} bits" for at in (0, 2) for what in ("weight", "input")
    }
    assert sizes == {"0 weight bits": 12, "2 weight bits": 8}
    assert set(formatted(inputs=False)[0].space.names) == set(sizes)


def test_32_bits_are_the_float_network(x):
    supernet, _ = formatted()
    assert_close(supernet(x), network()(x), rtol=0, atol=0)


def test_a_genotype_rounds_weights_and_inputs_apart(x):
    supernet, _ = formatted()
    taken = dict.fromkeys(supernet.space.names, "32")
    supernet.use(supernet.space.encode({**taken, "0 weight bits": "2", "2 input bits": "4"}))
    plain = network()
    first = nn.functional.linear(x, fake_quantise(plain[0].weight, 2), plain[0].bias)
    assert_close(supernet(x), plain[2](fake_quantise(first.relu(), 4)))


def test_one_bit_is_a_sign_at_the_mean_size_with_a_gradient():
    choice = format_choice("w", (1,))
    x = torch.tensor([[1.0, -3.0], [0.5, 0.5]], requires_grad=True)
    out = choice(x)
    assert_close(out.detach(), torch.tensor([[2.0, -2.0], [0.5, 0.5]]))
    out.sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_subnet_comes_out_with_the_same_outputs_and_can_be_trained(x):
    supernet, _ = formatted()
    genotype = supernet.space.encode(dict.fromkeys(supernet.space.names, "4"))
    alone = supernet.extract(genotype)
    supernet.use(genotype)
    assert_close(alone(x), supernet(x), rtol=0, atol=0)
    alone(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in alone.parameters())


def test_mixtures_of_formats_teach_their_logits(x):
    supernet, _ = formatted()
    relaxation = Relaxation(supernet)
    relaxation.mix(supernet)
    supernet(x).square().sum().backward()
    assert len(relaxation.alpha) == 4
    assert all(alpha.grad.abs().sum() > 0 for alpha in relaxation.alpha)


def test_sizes_are_bits_times_numbers():
    supernet, sizes = formatted((2, 8))
    space = supernet.space
    taken = dict.fromkeys(space.names, "8") | {"0 weight bits": "2"}
    assert model_bits(space, space.encode(taken), sizes) == 2 * 12 + 8 * 8
    costs = format_costs(space, sizes, inputs={"2 input bits": 24})
    assert costs == {
        "0 weight bits": [24.0, 96.0],
        "2 weight bits": [16.0, 64.0],
        "0 input bits": [0.0, 0.0],
        "2 input bits": [48.0, 192.0],
    }


def test_a_network_without_linear_layers_or_with_formats_is_refused():
    with pytest.raises(InputError, match="linear layers"):
        searchable_formats(nn.Sequential(nn.ReLU()))
    with pytest.raises(InputError, match="linear layers"):
        searchable_formats(formatted()[0].body)
