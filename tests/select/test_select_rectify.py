import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import make_scores, rows
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import rectified, top_k, with_capacity

fast = settings(max_examples=25, deadline=None)


def one_by_one(scores, k, capacity, fill, devices):
    """What `rectified` promises, as a table of shares (how often an input has a branch)."""
    inputs, branches = scores.shape
    shares = torch.zeros(inputs, branches, dtype=torch.float64)
    kept = with_capacity(scores, k, capacity)
    shares += kept.mask()
    load = kept.load().tolist()
    wishes = [
        [e for e in row if scores[t, e] > -torch.inf]
        for t, row in enumerate(scores.argsort(1, descending=True).tolist())
    ]
    if fill:
        waiting = [t for t in range(inputs) if len(wishes[t]) > k]
        for t in sorted(waiting, key=lambda t: -scores[t, wishes[t][k]].item()):
            if load[wishes[t][k]] < capacity:
                load[wishes[t][k]] += 1
                shares[t, wishes[t][k]] += 1
    if devices is not None:
        for t in range(inputs):
            own = [e for e in wishes[t] if e * devices // branches == t * devices // inputs]
            if own:
                shares[t, own[0]] += k - len(rows(kept)[t])
    return shares


@fast
@given(
    st.integers(0, 2**31),
    st.integers(0, 12),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([None, 1, 2, 4]),
    st.sampled_from([0.0, 0.3]),
)
def test_rectified_is_what_its_rules_say(seed, inputs, k, capacity, fill, devices, holes):
    scores = make_scores(seed, inputs, 4, holes=holes)
    route = rectified(scores, k, capacity, fill=fill, devices=devices).validate()
    shares = one_by_one(scores, k, capacity, fill, devices)
    assert torch.equal(route.mask(), shares > 0)
    parts = shares * scores.exp()
    total = parts.sum(1, keepdim=True)
    assert_close(route.to_dense(), parts / total.where(total > 0, torch.ones(())))


def test_room_for_everybody_and_nothing_filled_is_plain_top_k():
    scores = make_scores(0, 12, 4)
    route, plain = rectified(scores, 2, 12, fill=False), top_k(scores, 2)
    assert rows(route) == rows(plain)
    assert_close(route.weights, plain.weights)


def test_nobody_is_dropped_and_what_travels_keeps_the_capacity():
    scores = make_scores(1, 32, 8)
    scores[:, 0] += 4
    plain = with_capacity(scores, 1, 4)
    assert plain.dropped().any()
    filled = rectified(scores, 1, 4, devices=None)
    assert (filled.load() <= 4).all()
    assert len(filled) > len(plain)
    route = rectified(scores, 1, 4, devices=4)
    assert not route.dropped().any()
    remote = route.branches // 2 != route.inputs * 4 // 32
    assert (torch.bincount(route.branches[remote], minlength=8) <= 4).all()


def test_a_choice_lost_at_home_adds_to_the_branch_that_is_there_anyway():
    scores = torch.tensor([[0.0, -9.0, 3.0, -9.0], [1.0, -9.0, 3.0, -9.0]], dtype=torch.float64)
    route = rectified(scores, 2, 1, fill=False, devices=1)
    # Input 1 finds branches 2 and 0 full, so its best branch counts twice: alone, weight one.
    assert rows(route) == [[2, 0], [2]]
    assert_close(route.weights[2], torch.ones((), dtype=torch.float64))


def test_numbers_out_of_range_are_refused():
    scores = torch.randn(3, 4)
    with pytest.raises(RouteError, match="capacity must be .* at least 1, got 0"):
        rectified(scores, 1, 0)
    with pytest.raises(RouteError, match="devices must divide the number of branches, 4, got 3"):
        rectified(scores, 1, 1, devices=3)
    with pytest.raises(RouteError, match="devices must be .* at least 1, got 0"):
        rectified(scores, 1, 1, devices=0)
