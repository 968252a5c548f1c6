import pytest
import torch
from torch.testing import assert_close

from pointsman.cost import count_flops
from pointsman.depth.decoder import rotate
from pointsman.depth.scales import (
    NextScale,
    ScaleKeys,
    equidistant,
    layers_by_scale,
    nats,
    pyramid,
    subnet_share,
)
from pointsman.errors import InputError

SIZES = (1, 2, 4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return NextScale(SIZES, levels=5, classes=3, width=8, layers=4, heads=2).double()


def images(n=3):
    return torch.randint(5, (n, 4, 4), generator=torch.Generator().manual_seed(0))


def test_subnets_are_the_papers_sets_and_not_nested():
    assert equidistant(30, 2) == (0, 29)
    assert equidistant(30, 8) == (0, 4, 8, 12, 16, 20, 24, 29)
    assert equidistant(30, 16)[:4] == (0, 1, 3, 5)
    assert not set(equidistant(30, 8)) <= set(equidistant(30, 16))
    for layers in (1, 2, 7):
        assert equidistant(layers, layers) == tuple(range(layers))
        assert equidistant(layers, 1) == (0,)
    assert layers_by_scale(4, 3, bridge=2, depth=2) == [(0, 1, 2, 3), (0, 1, 2, 3), (0, 3)]


def test_a_pyramid_is_the_image_and_its_means():
    found = pyramid(images(), SIZES, 5)
    assert [x.shape for x in found] == [(3, 1), (3, 4), (3, 16)]
    assert torch.equal(found[2].reshape(3, 4, 4), images())
    assert_close(found[0][:, 0], images().float().mean(dim=(1, 2)).round().long())


def test_full_depth_is_the_full_model_and_costs_fall_with_depth(model):
    scales, labels = pyramid(images(), SIZES, 5), torch.tensor([0, 1, 2])
    whole = model(scales, labels)
    same = model(scales, labels, layers_by_scale(4, 3, bridge=1, depth=4))
    for a, b in zip(whole, same, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    spent = [
        float(count_flops(model, scales, labels, layers_by_scale(4, 3, bridge=2, depth=depth)))
        for depth in (4, 3, 2, 1)
    ]
    assert spent == sorted(spent, reverse=True)
    assert spent[3] < 0.5 * spent[0]


def test_the_bridge_does_not_see_what_later_scales_leave_out(model):
    scales, labels = pyramid(images(), SIZES, 5), torch.tensor([0, 1, 2])
    whole = model(scales, labels)
    cut = model(scales, labels, layers_by_scale(4, 3, bridge=2, depth=2))
    assert_close(whole[0], cut[0])
    assert_close(whole[1], cut[1])
    assert not torch.allclose(whole[2], cut[2])


def test_a_scale_depends_on_coarser_scales_alone(model):
    scales, labels = pyramid(images(), SIZES, 5), torch.tensor([0, 1, 2])
    other = [x.clone() for x in scales]
    other[1] = (other[1] + 1) % 5
    before, after = model(scales, labels), model(other, labels)
    assert_close(before[0], after[0])
    assert_close(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


@torch.no_grad()
def test_places_of_a_scale_see_each_other_and_keys_of_the_layers_that_ran(model):
    """One scale written out with a whole attention matrix."""
    labels, keys = torch.tensor([1, 2]), ScaleKeys()
    first = model.scale(0, None, labels, keys, [[0, 2], [0, 1, 2], [0]]).argmax(dim=-1)
    x = model.level(first.repeat(1, 4)) + model.label(labels)[:, None] + model.places[1]
    held = {}
    start = model.level(torch.full((2, 1), 5)) + model.label(labels)[:, None] + model.places[0]
    for layer in (0, 2):
        held[layer] = start
        start = _block(model.blocks[layer], start, [start], [0])
    for layer in (0, 1, 2):
        seen = [held[layer], x] if layer in held else [x]
        x = _block(model.blocks[layer], x, seen, [0, 1] if layer in held else [1])
    by_hand = model.head(model.norm(x))
    assert_close(model.scale(1, first, labels, keys, [[0, 2], [0, 1, 2], [0]]), by_hand)


def _block(block, x, seen, scales):
    """x over what was seen, each at the position of its scale."""
    attention, n = block.attention, len(x)

    def heads(part):
        return part.reshape(n, -1, 2, 4).transpose(1, 2)

    def at(part, scale):
        return torch.full((n, part.shape[1]), scale)

    q = attention.mix(block.norm_1(x))[..., :8]
    kv = [attention.mix(block.norm_1(s)) for s in seen]
    query = rotate(heads(q), at(q, scales[-1]))
    keys = [rotate(heads(p[..., 8:16]), at(p, s)) for p, s in zip(kv, scales, strict=True)]
    values = torch.cat([heads(p[..., 16:]) for p in kv], dim=2)
    scores = query @ torch.cat(keys, dim=2).transpose(2, 3) / 2
    x = x + attention.out((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))
    return x + block.feed_forward(block.norm_2(x))


def test_keys_are_held_for_the_layers_that_ran(model):
    labels = torch.tensor([0, 1])
    _, whole = model.sample(labels)
    drawn, some = model.sample(labels, layers_by_scale(4, 3, bridge=2, depth=2))
    assert whole == 2 * 4 * (1 + 4 + 16)
    assert some == 2 * (4 * (1 + 4) + 2 * 16)
    assert drawn.shape == (2, 4, 4)
    assert torch.equal(drawn, model.sample(labels, layers_by_scale(4, 3, bridge=2, depth=2))[0])
    assert not torch.equal(drawn, model.sample(labels, seed=1)[0])


def test_gradients_flow_through_the_keys_of_earlier_scales(model):
    scales, labels = pyramid(images(), SIZES, 5), torch.tensor([0, 1, 2])
    logits = model(scales, labels)
    nats(logits, scales)[2].backward()
    assert model.places[0].grad.abs().sum() > 0
    found = nats(logits, scales)
    assert found.shape == (3,)
    by_hand = -logits[1].log_softmax(-1).gather(-1, scales[1][..., None]).sum() / 3
    assert_close(found[1], by_hand)


def test_the_share_of_subnets_rises_from_least_to_one():
    shares = [subnet_share(progress) for progress in (0, 0.25, 0.425, 0.6, 1)]
    assert shares == pytest.approx([0.2, 0.2, 0.6, 1, 1])
    assert subnet_share(0.5, least=1.0) == 1


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(InputError, match="1 to 4 of them, got 5"):
        equidistant(4, 5)
    with pytest.raises(InputError, match="0 to 3 scales"):
        layers_by_scale(4, 3, bridge=4, depth=2)
    with pytest.raises(InputError, match="rises from"):
        subnet_share(0, start=0.7, stop=0.6)
    with pytest.raises(InputError, match="multiple of the one before"):
        NextScale((1, 3, 4), levels=5, classes=3, width=8, layers=4, heads=2)
    scales, labels = pyramid(images(), SIZES, 5), torch.tensor([0, 1, 2])
    for layers in ([[0]], [[0], [1, 0], [0]], [[0], [0], [4]], [[0], [], [0]]):
        with pytest.raises(InputError, match="some of the layers 0 to 3"):
            model(scales, labels, layers)
