"""The routed layer against a readable reference, and the limits of its parts."""

import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pointsman.errors import DegenerateWarning, InputError, RouteError
from pointsman.moe import FeedForwardExperts, MoE, Routing
from pointsman.moe.balance import switch
from pointsman.route import Route
from pointsman.select import categorical, expert_choice, top_k, with_capacity


def layer(experts: int = 5, width: int = 4, hidden: int = 6, k: int = 2, seed: int = 0) -> MoE:
    torch.manual_seed(seed)
    bank = FeedForwardExperts(experts, width, hidden)
    assert bank.up_bias_EF is not None
    nn.init.normal_(bank.up_bias_EF)
    with warnings.catch_warnings():  # k = 1 that sums to one, which a test below is about
        warnings.simplefilter("ignore", DegenerateWarning)
        return MoE(nn.Linear(width, experts, bias=False), partial(top_k, k=k), bank)


def dense(moe: MoE, x_TD: Tensor, k: int) -> Tensor:
    """Every expert on every token, summed with the probabilities of the k chosen."""
    bank = moe.experts
    assert isinstance(bank, FeedForwardExperts)
    scores_TE = moe.router(x_TD)
    chosen_TK = scores_TE.topk(k, dim=1).indices
    mask_TE = torch.zeros_like(scores_TE).scatter(1, chosen_TK, 1.0)
    weights_TE = torch.softmax(scores_TE, dim=1) * mask_TE
    weights_TE = weights_TE / weights_TE.sum(dim=1, keepdim=True)
    hidden_TEF = torch.einsum("td,efd->tef", x_TD, bank.up_EFD) + bank.up_bias_EF
    answers_TED = torch.einsum("tef,edf->ted", bank.activation(hidden_TEF), bank.down_EDF)
    return (weights_TE[:, :, None] * answers_TED).sum(dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.data())
def test_the_layer_equals_the_dense_reference(
    experts: int, tokens: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    moe = layer(experts=experts, k=k, seed=data.draw(st.integers(0, 99))).double()
    x = torch.randn(tokens, 4, dtype=torch.float64, requires_grad=True)
    found, expected = moe(x)[0], dense(moe, x, k)
    torch.testing.assert_close(found, expected)
    tensors = (x, *moe.experts.parameters(), moe.router.weight)
    probe = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * probe).sum(), tensors) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_right_in_double_precision() -> None:
    moe = layer().double()
    names = [name for name, _ in moe.named_parameters()]
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        output: Tensor = torch.func.functional_call(moe, given, (x,))[0]
        return output

    parameters = [parameter.detach().requires_grad_() for parameter in moe.parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_one_expert_is_a_plain_feed_forward() -> None:
    moe = layer(experts=1, k=1)
    bank = moe.experts
    assert isinstance(bank, FeedForwardExperts)
    x = torch.randn(9, 4)
    assert bank.up_bias_EF is not None
    hidden = torch.nn.functional.gelu(x @ bank.up_EFD[0].T + bank.up_bias_EF[0])
    torch.testing.assert_close(moe(x)[0], hidden @ bank.down_EDF[0].T)


def test_all_leading_dimensions_are_tokens() -> None:
    moe = layer()
    x = torch.randn(2, 3, 5, 4)
    output, routing = moe(x)
    assert output.shape == x.shape
    assert routing.scores.shape == (30, 5)
    torch.testing.assert_close(output.reshape(30, 4), moe(x.reshape(30, 4))[0])


def test_tokens_are_answered_alone_and_in_any_order() -> None:
    moe = layer().eval()
    x = torch.randn(20, 4)
    order = torch.randperm(20)
    torch.testing.assert_close(moe(x[order])[0], moe(x)[0][order])
    torch.testing.assert_close(moe(x[:1])[0], moe(x)[0][:1])


def test_experts_without_tokens_do_no_harm() -> None:
    moe = layer(experts=4, k=1)
    with torch.no_grad():
        moe.router.weight[:] = -1.0  # type: ignore[index, operator]
        moe.router.weight[2] = 1.0  # type: ignore[index, operator]
    x = torch.rand(6, 4)
    output, routing = moe(x)
    assert routing.route.load().tolist() == [0, 0, 6, 0]
    output.sum().backward()
    grad = moe.experts.up_EFD.grad  # type: ignore[union-attr]
    assert isinstance(grad, Tensor)
    assert grad[2].any()
    assert not grad[[0, 1, 3]].any()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_no_tokens_give_no_output(shape: tuple[int, ...]) -> None:
    moe = layer()
    output, routing = moe(torch.zeros(shape, requires_grad=True))
    assert output.shape == shape
    assert len(routing.route) == 0
    assert not switch(routing).any()
    (output.sum() + switch(routing)).backward()


def test_another_selection_may_be_made_for_one_call() -> None:
    moe = layer(k=2)
    x = torch.randn(8, 4)
    for k in (1, 2, 5):
        output, routing = moe(x, select=partial(top_k, k=k))
        assert routing.route.branches_per_input().tolist() == [k] * 8
        torch.testing.assert_close(output, dense(moe, x, k))
    assert moe(x)[1].route.branches_per_input().tolist() == [2] * 8


def test_more_experts_than_there_are_is_an_error() -> None:
    with pytest.raises(RouteError, match="5"):
        layer(experts=5, k=6)(torch.randn(3, 4))


def test_dropped_tokens_give_zeros() -> None:
    moe = layer(experts=3)

    def first_only(scores: Tensor) -> Route:
        branches = torch.full((len(scores), 1), -1)
        branches[0] = 1
        return Route.from_indices(branches, num_branches=3)

    output, _ = moe(torch.randn(5, 4), select=first_only)
    assert output[0].any()
    assert not output[1:].any()


@pytest.mark.parametrize("sizes", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_a_bank_of_nothing_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="num_experts, width and hidden of at least 1"):
        FeedForwardExperts(*sizes)


def test_a_bank_is_saved_and_loaded() -> None:
    one, other = layer(seed=0), layer(seed=1)
    x = torch.randn(6, 4)
    assert not torch.allclose(one(x)[0], other(x)[0])
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x)[0], other(x)[0])


def test_balance_is_one_where_all_is_uniform() -> None:
    scores = torch.zeros(12, 4)
    route = Route.from_indices(torch.arange(12)[:, None] % 4, num_branches=4)
    assert float(switch(Routing(scores, route, scores))) == pytest.approx(1)


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_balance_is_the_number_of_experts_where_one_takes_all(experts: int) -> None:
    scores = torch.full((20, experts), -50.0)
    scores[:, 0] = 50.0
    assert float(switch(Routing(scores, top_k(scores, 1), scores))) == pytest.approx(experts)


def test_balance_pushes_probability_away_from_the_loaded() -> None:
    scores = torch.randn(64, 4)
    scores[:, 1] += 1
    scores.requires_grad_()
    switch(Routing(scores, top_k(scores, 1), scores)).backward()
    assert scores.grad is not None
    push = scores.grad.sum(dim=0)
    assert push[1] > 0
    assert push[1] == push.max()
    torch.testing.assert_close(scores.grad.sum(dim=1), torch.zeros(64), atol=1e-7, rtol=0)


def none(scores: Tensor) -> Route:
    return Route.from_indices(scores.new_full((len(scores), 1), -1).long(), num_branches=5)


def test_a_call_that_drops_every_token_warns() -> None:
    with pytest.warns(DegenerateWarning, match=r"100% of 6 tokens were taken by no expert of none"):
        output, _ = layer()(torch.randn(6, 4), select=none)
    assert not output.any()


def test_more_dropped_tokens_than_allowed_warn() -> None:
    bank = FeedForwardExperts(4, 8, 8)
    moe = MoE(nn.Linear(8, 4), partial(with_capacity, k=2, capacity=1), bank, max_dropped=0.4)
    with pytest.warns(DegenerateWarning, match="tokens were taken by no expert of with_capacity"):
        moe(torch.randn(40, 8))


def test_padding_takes_no_part_in_anything() -> None:
    moe = layer()
    moe.balance = ((1.0, switch),)
    x, mask = torch.randn(3, 5, 4), torch.rand(3, 5) > 0.4
    output, routing = moe(x, mask=mask)
    alone, expected = moe(x[mask])
    torch.testing.assert_close(output[mask], alone)
    assert not output[~mask].any()
    torch.testing.assert_close(routing.loss, expected.loss)
    assert int(routing.route.load().sum()) == 2 * int(mask.sum())
    changed, _ = moe(x + 100 * ~mask[..., None], mask=mask)
    torch.testing.assert_close(changed, output)


def test_only_padding_gives_zeros_and_no_loss() -> None:
    moe = layer()
    moe.balance = ((1.0, switch),)
    output, routing = moe(torch.randn(2, 3, 4), mask=torch.zeros(2, 3, dtype=torch.bool))
    assert not output.any()
    assert routing.loss.item() == 0


@pytest.mark.parametrize("mask", [torch.ones(3, 5), torch.ones(5, 3, dtype=torch.bool)])
def test_a_mask_of_another_shape_or_type_is_refused(mask: Tensor) -> None:
    with pytest.raises(InputError, match=r"the mask must be bool with the shape of the tokens"):
        layer()(torch.randn(3, 5, 4), mask=mask)


def test_a_causal_layer_refuses_parts_that_look_ahead() -> None:
    bank = FeedForwardExperts(4, 8, 8)
    with pytest.raises(InputError, match=r"Linear with expert_choice can"):
        MoE(nn.Linear(8, 4), partial(expert_choice, capacity=2), bank, causal=True)
    assert MoE(nn.Linear(8, 4), partial(top_k, k=2), bank, causal=True).guarantee.causal


def test_a_router_without_gradient_is_warned_of() -> None:
    bank = FeedForwardExperts(4, 8, 8)
    with pytest.warns(DegenerateWarning, match=r"the router gets no gradient: top_k"):
        MoE(nn.Linear(8, 4), partial(top_k, k=1), bank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MoE(nn.Linear(8, 4), partial(top_k, k=1, renormalize=False), bank)


def test_a_router_may_compute_in_a_wider_type() -> None:
    moe = layer().to(torch.bfloat16)
    moe.router, moe.router_dtype = moe.router.float(), torch.float32
    output, routing = moe(torch.randn(6, 4, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert routing.scores.dtype == torch.float32


def test_two_terms_of_one_name_both_count() -> None:
    moe = layer()
    moe.balance = ((1.0, switch), (2.0, switch))
    _, routing = moe(torch.randn(6, 4))
    assert list(routing.losses) == ["switch", "switch 2"]
    torch.testing.assert_close(routing.loss, 3 * routing.losses["switch"])


def test_building_a_layer_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    router, bank = nn.Linear(8, 4), FeedForwardExperts(4, 8, 8)
    all_before = torch.get_rng_state()
    MoE(router, partial(categorical, k=2, generator=generator), bank)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), all_before)
