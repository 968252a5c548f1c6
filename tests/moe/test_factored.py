"""Mixtures in a row, patches that experts pick, a trellis: their parts and what they refuse."""

import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError, RouteError
from pointsman.moe import Routing, check_guarantee
from pointsman.moe.systems.factored import (
    EvenShares,
    deep_moe,
    information_gain,
    patch_choice,
    patch_level,
    trellis,
)
from pointsman.select import Guarantee


def test_an_expert_ahead_waits_and_comes_back() -> None:
    select = EvenShares(3, margin=2.0)
    scores = torch.tensor([[5.0, 0.0, 0.0]]).expand(4, 3)
    route = select(scores)
    select.after_step([Routing(scores, route, scores)])
    assert_close(select.total_E, route.to_dense().sum(0))
    waiting = select(scores)
    assert not waiting.mask()[:, 0].any()
    assert_close(waiting.to_dense().sum(1), torch.ones(4))
    select.constrained = False
    assert select(scores).mask().all()
    before = select.total_E.clone()
    select.after_step([Routing(scores, route, scores)])
    assert torch.equal(select.total_E, before)


def test_totals_are_saved_with_the_layer_and_left_alone_in_evaluation() -> None:
    (layer, _) = deep_moe((6, 5, 4), 3, (8, 8), margin=1.0)
    x = torch.randn(9, 6)
    layer.after_step([layer(x)[1]])  # type: ignore[operator]
    (other, _) = deep_moe((6, 5, 4), 3, (8, 8), margin=1.0)
    other.load_state_dict(layer.state_dict())
    assert_close(other.eval()(x)[0], layer.eval()(x)[0])
    total = layer.select.total_E.clone()  # type: ignore[operator, union-attr]
    layer.after_step([layer(x)[1]])  # type: ignore[operator]
    assert torch.equal(layer.select.total_E, total)  # type: ignore[arg-type, union-attr]


def test_patches_of_an_image_compete_with_each_other_alone() -> None:
    layer = patch_level(4, 5, num_experts=3, filters=2, chosen=2, router_std=1.0, filter_std=1.0)
    layer.double()
    found = check_guarantee(layer, torch.randn(3, 5, 4, dtype=torch.float64))
    assert layer.guarantee == found.guarantee == Guarantee(False, False)
    assert not found.sequences.any()
    assert layer(torch.zeros(0, 5, 4, dtype=torch.float64))[0].shape == (0, 5, 1)


def test_gradients_of_patch_weights_are_right() -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: patch_choice(s, 4, 2).to_dense(), scores)


def test_a_trellis_takes_any_path_and_no_inputs() -> None:
    layers = trellis(4, 3, (2, 3), router_width=5)
    for count in (7, 0):
        x = torch.randn(count, 4)
        for layer in layers:
            x, routing = layer(x)
            assert len(routing.route) == count
        assert x.shape == (count, 4)
    empty = information_gain(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3)
    assert float(empty) == 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"margin of at least 0, got 3 and -1"):
        EvenShares(3, margin=-1)
    with pytest.raises(RouteError, match=r"weighs 3 experts, got scores of shape \(2, 4\)"):
        EvenShares(3, margin=1)(torch.zeros(2, 4))
    with pytest.raises(RouteError, match=r"images of 4 patches are routed whole"):
        patch_choice(torch.zeros(6, 2), 4, 1)
    with pytest.raises(RouteError, match=r"an image has 4 patches, got chosen=5"):
        patch_choice(torch.zeros(8, 2), 4, 5)
    with pytest.raises(RouteError, match="got nan at row 0"):
        patch_choice(torch.full((4, 2), torch.nan), 4, 1)
    with pytest.raises(InputError, match=r"labels must be int64 of shape \(4,\)"):
        information_gain(torch.zeros(4, 2), torch.zeros(4), 3)
