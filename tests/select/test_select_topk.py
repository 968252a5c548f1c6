import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import eligible, make_scores, rows, scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import top_k

fast = settings(max_examples=60, deadline=None)


@fast
@given(scores(), st.data())
def test_exactly_k_and_none_left_out_is_better(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    route = top_k(scores, k).validate()
    assert_close(route.branches_per_input(), eligible(scores).clamp(max=k))
    for t, chosen in enumerate(rows(route)):
        got = scores[t, chosen]
        assert (got[1:] <= got[:-1]).all()  # best first
        left = [e for e in range(scores.shape[1]) if e not in chosen]
        if chosen and left:
            assert got.min() >= scores[t, left].max()


@fast
@given(scores(), st.data())
def test_weights_are_the_softmax_of_the_chosen_or_of_all(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    route, raw = top_k(scores, k), top_k(scores, k, renormalize=False)
    chosen = scores.masked_fill(~route.mask(), -torch.inf)
    assert_close(route.to_dense(), chosen.softmax(1).nan_to_num(0.0))
    assert_close(raw.to_dense(), scores.softmax(1).nan_to_num(0.0) * raw.mask())
    total = route.to_dense().sum(1)
    assert_close(total, (~route.dropped()).double())


@fast
@given(scores(), st.data())
def test_another_weighing_keeps_the_choice(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    raw = top_k(scores, k, weigh=torch.sigmoid, renormalize=False)
    one = top_k(scores, k, weigh=torch.sigmoid)
    assert_close(raw.to_dense(), scores.sigmoid() * raw.mask())
    assert_close(one.to_dense(), raw.to_dense() / raw.to_dense().sum(1, keepdim=True).clamp(1e-30))
    assert rows(raw) == rows(one) == rows(top_k(scores, k))


@fast
@given(scores(ties=st.just(False)), st.integers(0, 99), st.data())
def test_a_bias_moves_the_choice_and_not_the_weights(scores, seed, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    bias = make_scores(seed, 1, scores.shape[1])[0]
    biased = top_k(scores, k, bias=bias, renormalize=False)
    assert rows(biased) == rows(top_k(scores + bias, k))
    assert_close(biased.to_dense(), scores.softmax(1).nan_to_num(0.0) * biased.mask())


def test_a_bias_of_minus_infinity_closes_a_branch_and_all_closed_drops_everything():
    scores = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 5.0, 0.0]])
    bias = torch.tensor([-torch.inf, 0.0, 0.0])
    assert rows(top_k(scores, 2, bias=bias)) == [[2, 1], [1, 2]]
    assert rows(top_k(scores, 3, bias=bias)) == [[2, 1], [1, 2]]
    assert top_k(scores, 2, bias=torch.full((3,), -torch.inf)).dropped().all()


def test_a_bias_gets_no_gradient_and_a_float32_bias_keeps_half_precision_weights():
    bias = torch.zeros(4, requires_grad=True)
    scores = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    route = top_k(scores, 2, bias=bias)
    route.to_dense().pow(2).sum().backward()
    assert bias.grad is None
    assert route.weights.dtype == scores.grad.dtype == torch.bfloat16


def test_weights_stay_numbers_when_a_bias_picks_what_has_no_probability():
    scores = torch.tensor([[0.0, -1e4, -2e4]], requires_grad=True)
    route = top_k(scores, 2, bias=torch.tensor([-1e6, 0.0, 0.0]))
    assert_close(route.weights, torch.tensor([1.0, 0.0]))
    route.weights.sum().backward()
    assert scores.grad.isfinite().all()
    zero = top_k(scores, 2, weigh=lambda s: s * 0, renormalize=True)
    assert_close(zero.weights, torch.zeros(2))


def test_k_one_normalised_gives_the_scores_no_gradient_and_not_normalised_does():
    scores = torch.randn(4, 3, requires_grad=True)
    for renormalize in (True, False):
        (grad,) = torch.autograd.grad(
            top_k(scores, 1, renormalize=renormalize).weights.sum(), scores
        )
        assert bool((grad.abs() > 1e-6).any()) == (not renormalize)


def test_noise_is_gaussian_of_the_given_deviation_and_for_choosing_only():
    gap, noise = 1.0, 0.7
    scores = torch.tensor([[gap, 0.0]]).repeat(40_000, 1)
    route = top_k(
        scores, 1, noise=noise, renormalize=False, generator=torch.Generator().manual_seed(0)
    )
    # The difference of two such draws has deviation noise * sqrt(2).
    expected = 0.5 * (1 + math.erf(gap / (noise * math.sqrt(2)) / math.sqrt(2)))
    assert float((route.branches == 0).double().mean()) == pytest.approx(expected, abs=0.01)
    assert_close(route.weights, scores.softmax(1).gather(1, route.branches[:, None])[:, 0])


def test_noise_follows_the_generator_and_none_needs_no_draw():
    scores = torch.randn(50, 6)
    draws = [
        rows(top_k(scores, 2, noise=2.0, generator=torch.Generator().manual_seed(seed)))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    top_k(scores, 2, generator=generator)
    assert_close(generator.get_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": torch.zeros(3)}, r"shape \(branches,\) = \(4,\), got \(3,\)"),
        ({"bias": torch.tensor([0.0, torch.nan, 0.0, 0.0])}, "the bias .* nan at position 1"),
        ({"bias": torch.zeros(4, dtype=torch.int64)}, "the bias must be floating point"),
        ({"noise": -1.0}, "noise .* got -1.0"),
        ({"noise": torch.nan}, "noise .* got nan"),
        ({"weigh": lambda s: s.sum(1)}, r"weigh must keep the shape .* \(5, 4\), got \(5,\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(RouteError, match=message):
        top_k(torch.randn(5, 4), 2, renormalize=False, **options)
