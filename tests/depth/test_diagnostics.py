from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.diagnostics import (
    contributions,
    erasure,
    hidden_states,
    integrated_gradients,
    linear_maps,
    logit_lens,
    skip_effects,
    sublayer_contributions,
)
from pointsman.depth.layers.perceptron import ResidualPerceptron
from pointsman.errors import InputError


def blank(decoder, at):
    """Make a block the identity."""
    block = decoder.blocks[at]
    for last in (block.attention.out, block.feed_forward[2]):
        for weight in last.parameters():
            torch.nn.init.zeros_(weight)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    made = Decoder(vocabulary=11, width=8, layers=4, heads=2, context=12).double().eval()
    with torch.no_grad():
        for block in made.blocks:
            block.attention.out.weight.mul_(4.0)
    blank(made, 1)
    return made


@pytest.fixture
def ids():
    return torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(1))


def test_contributions_add_up_to_what_the_network_changes(decoder, ids):
    states = hidden_states(decoder, ids)
    total = sum(b - a for a, b in pairwise(states))
    assert_close(total, states[-1] - states[0])
    found = contributions(decoder, ids)
    assert float(found.relative[1]) == 0.0
    added = states[1] - states[0]
    assert_close(found.relative[0], (added.norm(dim=-1) / states[0].norm(dim=-1)).mean())
    ratio = (found.relative[2:].mean() / found.relative[:2].mean()).item()
    assert found.half_ratio == pytest.approx(ratio)
    with torch.no_grad():  # a block that takes half of the state away
        decoder.block = lambda at, state: state * 0.5
    erasing = contributions(decoder, ids, start=1)
    assert_close(erasing.relative, torch.full((4,), 0.5).double())
    assert_close(erasing.cosine, torch.full((4,), -1.0).double())


def test_parts_of_a_block_are_held_against_what_they_are_added_to(decoder, ids):
    parts = [(block.attention, block.feed_forward) for block in decoder.blocks]
    attention, inner = sublayer_contributions(decoder, ids, parts, start=2)
    state = decoder.begin(ids)
    block = decoder.blocks[0]
    places = torch.arange(9).expand(3, 9)
    a = block.attention(block.norm_1(state), places)
    m = block.feed_forward(block.norm_2(state + a))
    size = (m.norm(dim=-1) / (state + a).norm(dim=-1))[:, 2:].mean()
    assert_close(inner.relative[0], size)
    assert_close(attention.relative[0], (a.norm(dim=-1) / state.norm(dim=-1))[:, 2:].mean())
    assert not decoder.blocks[0].attention._forward_hooks
    with pytest.raises(InputError, match="4 blocks"):
        sublayer_contributions(decoder, ids, parts[:2])


@pytest.mark.parametrize("local", [False, True])
def test_skipping_changes_only_later_layers_and_an_identity_nothing(decoder, ids, local):
    found = skip_effects(decoder, ids, [3, 6], local=local)
    assert float(found.mean[1].abs().max()) < 1e-12
    assert float(found.mean.tril().abs().max()) == 0.0
    assert float(found.mean[0, 2:].min()) > 1e-6
    assert bool((found.largest >= found.mean).all())
    if not local:
        assert float(found.output[1]) < 1e-12
        assert float(found.output[0]) > 1e-6
        assert float(found.output[3]) == 0.0  # the last block is read by its own token only


def test_a_local_effect_is_the_full_one_where_nothing_lies_between(decoder, ids):
    whole, local = (skip_effects(decoder, ids, [5], local=flag).mean for flag in (False, True))
    assert_close(local[2, 3], whole[2, 3])
    assert_close(local[0, 2], whole[0, 2])  # between them lies the identity
    assert abs(float(local[0, 3] - whole[0, 3])) > 1e-6


def test_a_token_is_needed_until_the_last_block_has_read_it(decoder, ids):
    found = erasure(decoder, ids, 4)
    assert found.shape == (5,)
    assert float(found[4]) == 0.0
    assert float(found[:4].min()) > 1e-6
    with pytest.raises(InputError, match="before the end"):
        erasure(decoder, ids, 8)


def test_the_lens_agrees_with_the_network_at_its_end(decoder, ids):
    lens = logit_lens(decoder, ids, k=3, start=1)
    assert float(lens.divergence[-1]) == pytest.approx(0.0, abs=1e-12)
    assert float(lens.overlap[-1]) == 1.0
    assert float(lens.divergence[0]) > 0
    assert float(lens.divergence[1]) == pytest.approx(float(lens.divergence[2]))


def test_gradients_on_the_way_add_up_to_what_the_blocks_change():
    trunk = ResidualPerceptron(6, 8, 4, 3).double()
    x = torch.randn(5, 6).double()
    parts = integrated_gradients(trunk, x, lambda logits: logits[:, 1], steps=400)
    without = trunk.finish(trunk.begin(x))[:, 1]
    assert_close(parts.sum(dim=0), trunk(x)[:, 1] - without, rtol=1e-4, atol=1e-4)


def test_linear_maps_find_what_is_linear():
    torch.manual_seed(0)
    a, b = torch.randn(2, 300, 6), torch.randn(600, 4)
    linear = (a.flatten(0, 1) @ torch.randn(6, 5) + 3).reshape(2, 300, 5)
    error = linear_maps([a, b.reshape(2, 300, 4)], [linear, a], ridge=1e-9)
    assert float(error[0].max()) < 1e-5
    assert float(error[1].min()) > 0.9
    with pytest.raises(InputError, match="same tokens"):
        linear_maps([a], [b[:10]])
