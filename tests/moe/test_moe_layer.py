"""The routed layer against a dense loop over experts."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from pointsman.errors import InputError, RouteError
from pointsman.moe import FeedForwardExperts, MoE, switch_balance
from pointsman.route import Route
from pointsman.select import top_k


def layer(experts=5, k=2, dtype=torch.float64):
    torch.manual_seed(0)
    return MoE(
        nn.Linear(4, experts, bias=False), partial(top_k, k=k), FeedForwardExperts(experts, 4, 6)
    ).to(dtype)


def dense_reference(moe, x_TD, k):
    """Every expert on every token, times the top-k weights."""
    weights = torch.softmax(moe.router(x_TD), dim=1)
    kept = torch.zeros_like(weights).scatter(1, weights.topk(k, dim=1).indices, 1.0) * weights
    kept = kept / kept.sum(dim=1, keepdim=True)
    bank, total = moe.experts, torch.zeros_like(x_TD)
    for e in range(bank.num_experts):
        hidden = functional.gelu(x_TD @ bank.up_EDH[e] + bank.up_bias_EH[e])
        total = total + kept[:, e : e + 1] * (hidden @ bank.down_EHD[e])
    return total


@pytest.mark.parametrize("k", [1, 2, 5])
def test_output_and_gradients_equal_the_dense_loop(k):
    moe, x = layer(k=k), torch.randn(9, 4, dtype=torch.float64)
    out, _ = moe(x)
    expected = dense_reference(moe, x, k)
    torch.testing.assert_close(out, expected)
    found = torch.autograd.grad(out.square().sum(), list(moe.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(moe.parameters()))
    torch.testing.assert_close(found, wanted)


def test_gradcheck_in_float64():
    moe, x = layer(experts=3), torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: moe(x)[0], (x,))


def test_one_expert_equals_the_plain_feed_forward():
    moe, x = layer(experts=1, k=1), torch.randn(6, 4, dtype=torch.float64)
    bank = moe.experts
    hidden = functional.gelu(x @ bank.up_EDH[0] + bank.up_bias_EH[0])
    torch.testing.assert_close(moe(x)[0], hidden @ bank.down_EHD[0])


def test_leading_dimensions_are_kept_and_a_call_may_select_otherwise():
    moe, x = layer(), torch.randn(2, 3, 4, dtype=torch.float64)
    out, routing = moe(x, partial(top_k, k=1))
    assert out.shape == x.shape
    assert routing.route.branches_per_input().tolist() == [1] * 6
    torch.testing.assert_close(out.reshape(6, 4), dense_reference(moe, x.reshape(6, 4), 1))


def test_no_token_gives_an_empty_output():
    out, routing = layer()(torch.zeros(0, 4, dtype=torch.float64))
    assert out.shape == (0, 4)
    assert switch_balance(routing.scores, routing.route).item() == 0


def test_experts_without_tokens_are_no_obstacle():
    moe, x = layer(experts=5, k=1), torch.randn(1, 4, dtype=torch.float64)
    assert (moe(x)[1].route.load() == 0).sum() == 4


def test_more_experts_than_there_are_is_refused():
    with pytest.raises(RouteError):
        layer(k=6)(torch.randn(2, 4, dtype=torch.float64))


def test_sizes_below_one_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        FeedForwardExperts(0, 4, 4)


def test_balance_is_one_when_uniform_and_the_number_of_experts_when_collapsed():
    uniform = torch.zeros(8, 4)
    even = Route.from_indices(torch.arange(8).remainder(4)[:, None], num_branches=4)
    torch.testing.assert_close(switch_balance(uniform, even), torch.tensor(1.0))
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(8, 1)
    all_to_one = Route.from_indices(torch.zeros(8, 1, dtype=torch.long), num_branches=4)
    torch.testing.assert_close(switch_balance(collapsed, all_to_one), torch.tensor(4.0))


def test_balance_teaches_the_router():
    scores = torch.randn(6, 3, requires_grad=True)
    switch_balance(scores, top_k(scores.detach(), k=1)).backward()
    assert scores.grad.abs().sum() > 0
