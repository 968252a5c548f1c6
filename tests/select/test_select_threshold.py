from itertools import combinations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from select_strategies import eligible, make_scores, rows, scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import relu, threshold, top_p

fast = settings(max_examples=60, deadline=None)


@fast
@example(make_scores(0, 5, 4, holes=0.5), -torch.inf)
@given(scores(), st.sampled_from([-torch.inf, -1.0, 0.0, 0.3, 2.0, 99.0]))
def test_threshold_takes_exactly_what_clears_the_bar(scores, minimum):
    route = threshold(scores, minimum).validate()
    expected = (scores >= minimum) & (scores > -torch.inf)
    assert_close(route.mask(), expected)
    assert_close(route.to_dense(), scores.masked_fill(~expected, 0.0))


def test_threshold_includes_the_bar_and_refuses_a_nan_one():
    assert rows(threshold(torch.tensor([[0.5, 0.25]]), 0.5)) == [[0]]
    with pytest.raises(RouteError, match="nan"):
        threshold(torch.ones(1, 1), torch.nan)


@fast
@given(scores())
def test_relu_is_the_dense_product(scores):
    scores = scores.requires_grad_()
    x = torch.randn(len(scores), 3, dtype=torch.float64)
    route = relu(scores).validate()
    answers = torch.stack([(e + 1) * x.sin() for e in range(scores.shape[1])], dim=1)  # (T, E, D)
    order = route.by_branch()
    rows_ND = answers[order.inputs, route.branches[order.order]]
    dense = (scores.relu()[:, :, None] * answers).sum(1)
    assert_close(route.combine(rows_ND), dense)
    seed = torch.randn_like(dense)
    assert_close(
        torch.autograd.grad(route.combine(rows_ND), scores, seed),
        torch.autograd.grad(dense, scores, seed),
    )


def test_relu_leaves_zero_out():
    assert rows(relu(torch.tensor([[0.0, 1e-30, -1.0]]))) == [[1]]


def fewest(probabilities, p):
    """Size of the smallest set of mass at least p, by trying all."""
    for size in range(1, len(probabilities) + 1):
        if max(sum(chosen) for chosen in combinations(probabilities, size)) >= p:
            return size
    return len(probabilities)


@fast
@given(scores(max_branches=5), st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_that_holds_p(scores, p):
    route = top_p(scores, p, renormalize=False).validate()
    probabilities = scores.softmax(1).nan_to_num(0.0)
    held = (probabilities * route.mask()).sum(1)
    assert (held[eligible(scores) > 0] >= p - 1e-12).all()
    sizes = route.branches_per_input()
    for t in range(len(scores)):
        if eligible(scores)[t]:
            low = fewest(probabilities[t].tolist(), p - 1e-12)
            assert low <= int(sizes[t]) <= fewest(probabilities[t].tolist(), p + 1e-12)
        else:
            assert int(sizes[t]) == 0
    assert_close(route.to_dense(), probabilities * route.mask())
    normalised = top_p(scores, p).to_dense().sum(1)
    assert_close(normalised, (eligible(scores) > 0).double())


@fast
@given(scores(), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_top_p_takes_the_likeliest_first_and_more_for_a_larger_p(scores, p, q):
    less, more = rows(top_p(scores, min(p, q))), rows(top_p(scores, max(p, q)))
    for t in range(len(scores)):
        assert more[t][: len(less[t])] == less[t]
        assert (scores[t, more[t]].diff() <= 0).all()


def test_top_p_extremes():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, -torch.inf, 0.0]])
    assert rows(top_p(scores, 1.0)) == [[0, 2, 1], [0, 2]]
    assert rows(top_p(scores, 1e-9)) == [[0], [0]]


def test_top_p_in_half_precision_sums_in_float32():
    # 512 equal shares: a bfloat16 sum would stall at 1 long before it is reached.
    route = top_p(torch.zeros(1, 512, dtype=torch.bfloat16), 0.75)
    assert int(route.branches_per_input()) == 384


@pytest.mark.parametrize("p", [0.0, -0.1, 1.1, torch.nan])
def test_top_p_needs_a_share(p):
    with pytest.raises(RouteError, match="share of probability"):
        top_p(torch.ones(1, 2), p)
