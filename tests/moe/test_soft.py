"""Soft mixture: the two softmaxes, padding, slots and their gradients."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts
from pointsman.moe.experts import LinearExperts, MixedExperts
from pointsman.moe.soft import SoftMoE


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def soft(experts: int = 3, slots: int = 2, width: int = 5, *, normalized: bool = False) -> SoftMoE:
    torch.manual_seed(1)
    bank = FeedForwardExperts(experts, width, 7, activation="gelu")
    return SoftMoE(width, bank, slots, normalized=normalized).double()


def by_loop(layer: SoftMoE, x_SD: torch.Tensor) -> torch.Tensor:
    logits = x_SD @ layer.phi_DP
    dispatch, combine = logits.softmax(0), logits.softmax(1)
    answers = []
    for slot in range(logits.shape[1]):
        expert = slot // layer.slots
        offsets = torch.zeros(layer.num_experts + 1, dtype=torch.int64)
        offsets[expert + 1 :] = 1
        answers.append(layer.experts((dispatch[:, slot] @ x_SD)[None], offsets)[0])
    return combine @ torch.stack(answers)


def test_every_sequence_equals_a_loop_over_slots() -> None:
    layer, x = soft(), draw(4, 6, 5)
    y, slots = layer(x)
    for at in range(4):
        assert_close(y[at], by_loop(layer, x[at]))
    assert_close(slots.dispatch.sum(1), torch.ones(4, 6, dtype=torch.float64))
    assert_close(slots.combine.sum(2), torch.ones(4, 6, dtype=torch.float64))


def test_leading_dimensions_are_those_of_the_input() -> None:
    layer, x = soft(), draw(2, 3, 6, 5)
    assert_close(layer(x)[0][1, 2], layer(x[1, 2])[0])


def test_padding_changes_nothing_and_answers_zero() -> None:
    layer, x = soft(), draw(3, 6, 5)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = False
    mask[2] = False
    x.requires_grad_()
    y, slots = layer(x, mask=mask)
    assert_close(y[0, :4], layer(x[0, :4])[0])
    assert_close(y[1], layer(x[1])[0])
    assert not y[~mask].any()
    assert not slots.dispatch[~mask].any()
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.isfinite().all()
    assert not grad[~mask].any()


def test_permuting_tokens_permutes_answers() -> None:
    layer, x = soft(), draw(6, 5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert_close(layer(x[order])[0], layer(x)[0][order])


def test_one_slot_of_one_expert_gives_all_tokens_the_expert_of_their_mean() -> None:
    layer, x = soft(experts=1, slots=1), draw(6, 5)
    y, slots = layer(x)
    mean = slots.dispatch[0, :, 0] @ x
    one = layer.experts(mean[None], torch.tensor([0, 1]))
    assert_close(y, one.expand(6, 5))


def test_gradients_of_all_parts() -> None:
    layer = soft(normalized=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    x = draw(2, 3, 5).requires_grad_()
    weights = list(layer.parameters())
    assert torch.autograd.gradcheck(
        lambda x, *_: layer(x, mask=mask)[0], (x, *weights), fast_mode=True
    )


def test_it_says_that_tokens_see_each_other() -> None:
    layer, x = soft(), draw(6, 5).requires_grad_()
    (grad,) = torch.autograd.grad(layer(x)[0][0].sum(), x)
    assert grad[5].any()
    assert not layer.guarantee.causal
    assert not layer.guarantee.batch_independent


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (0, 5)])
def test_no_tokens_give_no_answers(shape: tuple[int, ...]) -> None:
    y, _ = soft()(draw(*shape))
    assert y.shape == shape


def test_any_bank_and_another_width_of_answers() -> None:
    bank = MixedExperts([LinearExperts(2, 5, 4), nn.Linear(5, 4)])
    y, slots = SoftMoE(5, bank, slots=3)(draw(2, 6, 5).float())
    assert y.shape == (2, 6, 4)
    assert slots.dispatch.shape == (2, 6, 9)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="num_experts"):
        SoftMoE(5, nn.Linear(5, 5))
    with pytest.raises(InputError, match="slots of at least 1"):
        SoftMoE(5, LinearExperts(2, 5), slots=0)
    with pytest.raises(InputError, match=r"tokens of shape \(\.\.\., S, 5\)"):
        soft()(draw(2, 3, 4))
    with pytest.raises(InputError, match="mask must be bool"):
        soft()(draw(2, 3, 5), mask=torch.ones(2, 3))
