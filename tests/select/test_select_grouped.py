import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import make_scores, rows
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import group_limited, prototypes, top_k, with_capacity, within_best_group

fast = settings(max_examples=25, deadline=None)
SHAPES = st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (4, 2)])
seeds = st.integers(0, 2**31)
holes = st.sampled_from([0.0, 0.4, 0.9])


def by_value(scores, t, branches):
    return sorted(branches, key=lambda e: -scores[t, e].item())


@fast
@given(seeds, st.integers(0, 7), SHAPES, holes, st.data())
def test_group_limited_takes_the_best_of_the_best_groups(seed, inputs, shape, holes, data):
    groups, size = shape
    kept = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, kept * size))
    scores = make_scores(seed, inputs, groups * size, holes=holes)
    route = group_limited(scores, k, groups, kept, weigh=torch.sigmoid).validate()
    for t, chosen in enumerate(rows(route)):
        open_ = [e for e in range(groups * size) if scores[t, e] > -torch.inf]
        members = [by_value(scores, t, [e for e in open_ if e // size == g]) for g in range(groups)]
        values = [sum(scores[t, e].sigmoid().item() for e in m[:2]) if m else -1.0 for m in members]
        best = sorted(range(groups), key=lambda g: -values[g])[:kept]
        allowed = [e for g in best for e in members[g]]
        assert chosen == by_value(scores, t, allowed)[:k]


@fast
@given(seeds, st.integers(0, 7), SHAPES)
def test_all_groups_kept_or_one_group_is_plain_top_k(seed, inputs, shape):
    groups, size = shape
    scores = make_scores(seed, inputs, groups * size)
    for route in (
        group_limited(scores, size, groups, groups, group_score="best"),
        group_limited(scores, size, 1, 1),
        within_best_group(scores, 1, size, renormalize=True),
    ):
        plain = top_k(scores, size)
        assert rows(route) == rows(plain)
        assert_close(route.weights, plain.weights)


def test_the_bias_of_a_group_limited_choice_moves_who_is_chosen_and_no_weight():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    bias = torch.tensor([0.0, 0.0, 9.0, 0.0])
    route = group_limited(scores, 1, 2, 1, bias=bias, weigh=torch.sigmoid, renormalize=False)
    assert rows(route) == [[2]]
    assert_close(route.weights, torch.tensor([0.5]))


def test_two_good_branches_outvote_one_better_or_not():
    scores = torch.tensor([[2.0, -5.0, 1.0, 1.0]])
    assert rows(group_limited(scores, 1, 2, 1, weigh=torch.sigmoid)) == [[2]]
    assert rows(group_limited(scores, 1, 2, 1, group_score="best")) == [[0]]


@fast
@given(seeds, st.integers(0, 7), SHAPES, holes)
def test_prototypes_take_one_branch_of_every_group(seed, inputs, shape, holes):
    groups, size = shape
    scores = make_scores(seed, inputs, groups * size, holes=holes)
    route = prototypes(scores, groups).validate()
    dense = route.to_dense()
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        inside = scores[:, own].softmax(1).nan_to_num(0.0)
        best = torch.zeros_like(inside).scatter_(1, inside.argmax(1, keepdim=True), 1.0)
        assert_close(dense[:, own], inside * best)


@fast
@given(seeds, st.integers(0, 12), SHAPES, st.integers(1, 4))
def test_prototypes_with_capacity_are_a_top_1_with_capacity_in_every_group(
    seed, inputs, shape, capacity
):
    groups, size = shape
    scores = make_scores(seed, inputs, groups * size)
    dense = prototypes(scores, groups, capacity=capacity).to_dense()
    for g in range(groups):
        own = scores[:, g * size : (g + 1) * size]
        alone = with_capacity(own, 1, capacity, renormalize=False).to_dense()
        assert_close(dense[:, g * size : (g + 1) * size], alone)


@fast
@given(seeds, st.integers(0, 7), SHAPES, holes, st.data())
def test_within_best_group_uses_the_likeliest_group_alone(seed, inputs, shape, holes, data):
    groups, size = shape
    k = data.draw(st.integers(1, size))
    scores = make_scores(seed, inputs, groups * size, holes=holes)
    route = within_best_group(scores, groups, k).validate()
    probability = scores.softmax(1).nan_to_num(0.0)
    mass = probability.reshape(inputs, groups, size).sum(2)
    for t, chosen in enumerate(rows(route)):
        if not chosen:
            assert mass[t].sum() == 0
            continue
        group = {e // size for e in chosen}
        assert len(group) == 1
        assert mass[t, group.pop()] >= mass[t].max() - 1e-12
    assert_close(route.weights, probability[route.inputs, route.branches])


def test_groups_of_one_branch_are_top_1():
    scores = make_scores(0, 9, 5)
    route, plain = within_best_group(scores, 5, 1), top_k(scores, 1, renormalize=False)
    assert rows(route) == rows(plain)
    assert_close(route.weights, plain.weights)


@pytest.mark.parametrize("run", [prototypes, lambda s, g: within_best_group(s, g, 1)])
@pytest.mark.parametrize("groups", [0, 3, 1.5])
def test_groups_that_do_not_divide_the_branches_are_refused(run, groups):
    with pytest.raises(RouteError, match=f"groups must .* got {groups}"):
        run(torch.randn(3, 4), groups)


def test_numbers_out_of_range_are_refused():
    scores = torch.randn(3, 4)
    with pytest.raises(RouteError, match="groups_kept must be at most the groups, 2, got 3"):
        group_limited(scores, 1, 2, 3)
    with pytest.raises(RouteError, match="at most the branches of the kept groups, 1 of 2 each"):
        group_limited(scores, 3, 2, 1)
    with pytest.raises(RouteError, match="at most the branches of the kept groups, 1 of 2 each"):
        within_best_group(scores, 2, 3)
    with pytest.raises(RouteError, match="capacity must be .* at least 1, got 0"):
        prototypes(scores, 2, capacity=0)
    with pytest.raises(RouteError, match="group_score must be one of best two, best, got 'sum'"):
        group_limited(scores, 1, 2, 1, group_score="sum")
    with pytest.raises(RouteError, match=r"the bias must have shape \(branches,\) = \(4,\)"):
        group_limited(scores, 1, 2, 1, bias=torch.zeros(3))
