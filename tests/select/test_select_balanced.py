from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import eligible, rows, scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import balanced, sinkhorn, top_k
from pointsman.select.balanced import sinkhorn_plan

fast = settings(max_examples=60, deadline=None)


def best_balanced_total(scores):
    """Highest total score of a route of one branch each whose loads differ by at most one."""
    inputs, branches = scores.shape
    totals = [
        sum(scores[t, e].item() for t, e in enumerate(choice))
        for choice in product(range(branches), repeat=inputs)
        if max(loads := [choice.count(e) for e in range(branches)]) - min(loads) <= 1
    ]
    return max(totals)


@fast
@given(scores(max_inputs=6, max_branches=4, holes=(0.0,)))
def test_balanced_is_the_best_of_all_balanced_routes(scores):
    route = balanced(scores).validate()
    assert (route.branches_per_input() == 1).all()
    assert int(route.load().max() - route.load().min()) <= 1
    total = float((scores * route.mask()).sum())
    assert total == pytest.approx(best_balanced_total(scores), abs=1e-9)
    assert_close(route.to_dense(), scores.sigmoid() * route.mask())


@fast
@given(scores(max_inputs=6, max_branches=3, ties=st.just(False), holes=(0.2, 0.5)))
def test_balanced_around_holes_is_the_best_or_says_that_there_is_none(scores):
    live = eligible(scores) > 0
    best = best_balanced_total(scores[live])
    if best == -torch.inf:
        with pytest.raises(RouteError, match=r"cannot fill .* equally"):
            balanced(scores)
    else:
        route = balanced(scores).validate()
        assert_close(route.dropped(), ~live)
        chosen = scores.masked_fill(~route.mask(), 0.0)
        assert float(chosen.sum()) == pytest.approx(best, abs=1e-9)
        assert int(route.load().max() - route.load().min()) <= 1


def test_balanced_with_fewer_inputs_than_branches_gives_each_its_own():
    scores = torch.tensor([[9.0, 1.0, 0.0], [8.0, 0.0, 2.0]])
    assert rows(balanced(scores)) == [[0], [2]]


def test_balanced_weights_by_another_function():
    scores = torch.randn(6, 3)
    route = balanced(scores, weigh=lambda s: s.softmax(1))
    assert_close(route.to_dense(), scores.softmax(1) * route.mask())


@fast
@given(scores(), st.data())
def test_sinkhorn_takes_exactly_k_by_plan_and_weighs_by_softmax(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    route = sinkhorn(scores, k).validate()
    assert_close(route.branches_per_input(), eligible(scores).clamp(max=k))
    plan = sinkhorn_plan(scores)
    for t, chosen in enumerate(rows(route)):
        left = [e for e in range(scores.shape[1]) if e not in chosen]
        if chosen and left:
            assert plan[t, chosen].min() >= plan[t, left].max()
    assert_close(route.to_dense(), scores.softmax(1).nan_to_num(0.0) * route.mask())
    normalised = sinkhorn(scores, k, renormalize=True)
    assert_close(normalised.to_dense().sum(1), (~route.dropped()).double())


@settings(max_examples=20, deadline=None)
@given(scores(max_inputs=8, max_branches=4, holes=(0.0,)))
def test_the_plan_is_equally_full_both_ways(scores):
    plan = sinkhorn_plan(scores, iterations=200, temperature=3.0).exp()
    inputs, branches = scores.shape
    assert_close(plan.sum(1), torch.ones(inputs, dtype=torch.float64))
    if inputs:
        full = torch.full((branches,), inputs / branches, dtype=torch.float64)
        assert_close(plan.sum(0), full, rtol=0, atol=1e-3)


@fast
@given(scores(ties=st.just(False)), st.sampled_from([0.0, 3.0, 1000.0]))
def test_the_plan_does_not_see_a_bias_for_a_branch(scores, bias):
    """A constant for a column is what the balance takes out: popularity does not count."""
    biased = scores.clone()
    biased[:, 0] += bias
    plans = [sinkhorn_plan(s, iterations=20).exp() for s in (scores, biased)]
    assert_close(*plans)


def test_sinkhorn_evens_out_what_top_k_piles_up():
    scores = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 2
    piled, even = top_k(scores, 1).load(), sinkhorn(scores).load()
    assert int(piled.max()) > 150
    assert int(even.max()) < 75  # 50 each would be perfect


def test_sinkhorn_takes_scores_of_any_size_in_any_precision():
    scores = torch.tensor([[6e4, -6e4], [6e4, 0.0]], dtype=torch.float16)
    plan = sinkhorn_plan(scores, iterations=50)
    assert plan.dtype == torch.float32
    assert not plan.isnan().any()
    assert rows(sinkhorn(scores, iterations=50)) == [[0], [1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations .* at least 1, got 0"),
        ({"temperature": 0.0}, "temperature .* above 0, got 0.0"),
        ({"temperature": torch.nan}, "temperature .* got nan"),
    ],
)
def test_sinkhorn_refuses_what_makes_no_plan(options, message):
    with pytest.raises(RouteError, match=message):
        sinkhorn(torch.randn(3, 2), **options)
