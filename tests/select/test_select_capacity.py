import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import make_scores, rows, scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import expert_choice, top_k, with_capacity

fast = settings(max_examples=80, deadline=None)


@fast
@given(scores(), st.integers(1, 10))
def test_expert_choice_fills_every_branch_with_those_who_prefer_it_most(scores, capacity):
    route = expert_choice(scores, capacity).validate()
    room = (scores > -torch.inf).sum(0).clamp(max=capacity)
    assert_close(route.load(), room)
    affinity = scores.softmax(1).nan_to_num(0.0)
    mask = route.mask()
    for e in range(scores.shape[1]):
        inside, outside = mask[:, e], ~mask[:, e] & (scores[:, e] > -torch.inf)
        if inside.any() and outside.any():
            assert affinity[inside, e].min() >= affinity[outside, e].max()
    assert_close(route.to_dense(), affinity * mask)


@fast
@given(scores(), st.integers(1, 4))
def test_expert_choice_compares_by_the_weighing_given(scores, capacity):
    route = expert_choice(scores, capacity, weigh=torch.sigmoid)
    for e in range(scores.shape[1]):
        inside, outside = route.mask()[:, e], ~route.mask()[:, e]
        if inside.any() and outside.any():
            assert scores[inside, e].min() >= scores[outside, e].max()
    assert_close(route.to_dense(), scores.sigmoid() * route.mask())


def served_one_by_one(scores, k, capacity, overflow, order):
    """What with_capacity promises, input after input."""
    room = [capacity] * scores.shape[1]
    chosen = [[] for _ in scores]
    turns = list(range(len(scores)))
    if order == "rank":
        return served_rank_by_rank(scores, k, room, overflow)
    if order == "score":
        first = scores.softmax(1).nan_to_num(0.0).amax(1).tolist()
        turns.sort(key=lambda t: -first[t])
    for t in turns:
        wishes = [
            e for e in scores[t].argsort(descending=True).tolist() if scores[t, e] > -torch.inf
        ]
        if overflow == "drop":
            chosen[t] = [e for e in wishes[:k] if room[e] > 0]
        else:
            chosen[t] = [e for e in wishes if room[e] > 0][:k]
        for e in chosen[t]:
            room[e] -= 1
    return chosen


def served_rank_by_rank(scores, k, room, overflow):
    """All first choices, input after input, then all second ones, and so on."""
    ranked = scores.argsort(1, descending=True).tolist()
    wishes = [[e for e in row if scores[t, e] > -torch.inf] for t, row in enumerate(ranked)]
    chosen = [[] for _ in scores]
    for rank in range(k):
        for t, wish in enumerate(wishes):
            if overflow == "drop":
                left = [e for e in wish[rank : rank + 1] if room[e] > 0]
            else:
                left = [e for e in wish if room[e] > 0 and e not in chosen[t]]
            for e in left[:1]:
                chosen[t].append(e)
                room[e] -= 1
    return chosen


@fast
@given(
    scores(max_inputs=12, ties=st.just(False)),
    st.data(),
    st.integers(1, 6),
    st.sampled_from(["drop", "reroute"]),
    st.sampled_from(["position", "score", "rank"]),
)
def test_with_capacity_serves_one_input_after_the_other(scores, data, capacity, overflow, order):
    k = data.draw(st.integers(1, scores.shape[1]))
    route = with_capacity(scores, k, capacity, overflow=overflow, order=order).validate()
    assert (route.load() <= capacity).all()
    assert (route.branches_per_input() <= k).all()
    assert rows(route) == served_one_by_one(scores, k, capacity, overflow, order)
    assert_close(route.to_dense().sum(1), (~route.dropped()).double())


@fast
@given(scores(ties=st.just(True)), st.integers(1, 3), st.sampled_from(["drop", "reroute"]))
def test_with_capacity_holds_among_ties(scores, capacity, overflow):
    k = min(2, scores.shape[1])
    route = with_capacity(scores, k, capacity, overflow=overflow).validate()
    assert (route.load() <= capacity).all()
    assert not (route.mask() & (scores == -torch.inf)).any()


@fast
@given(scores(ties=st.just(False)), st.sampled_from(["drop", "reroute"]))
def test_room_for_everybody_is_plain_top_k(scores, overflow):
    k = min(2, scores.shape[1])
    roomy = with_capacity(scores, k, max(1, len(scores)), overflow=overflow, renormalize=False)
    assert rows(roomy) == rows(top_k(scores, k))
    assert_close(roomy.to_dense(), top_k(scores, k, renormalize=False).to_dense())


def test_reroute_places_everybody_while_there_is_room():
    scores = make_scores(0, 40, 5)
    scores[:, 0] += 9  # all want the first branch
    dropped = with_capacity(scores, 1, 8)
    assert int(dropped.load()[0]) == 8
    assert bool(dropped.dropped().any())
    rerouted = with_capacity(scores, 1, 8, overflow="reroute")
    assert rerouted.load().tolist() == [8] * 5
    assert not rerouted.dropped().any()


def test_by_score_the_surer_input_keeps_the_place():
    scores = torch.tensor([[1.0, 0.0], [9.0, 0.0], [5.0, 0.0]])
    assert rows(with_capacity(scores, 1, 1)) == [[0], [], []]
    assert rows(with_capacity(scores, 1, 1, order="score")) == [[], [0], []]
    rerouted = with_capacity(scores, 1, 1, order="score", overflow="reroute")
    assert rows(rerouted) == [[], [0], [1]]


def test_by_rank_a_first_choice_comes_before_an_earlier_inputs_second():
    scores = torch.tensor([[5.0, 4.0, 0.0], [0.0, 9.0, 1.0]])
    assert rows(with_capacity(scores, 2, 1)) == [[0, 1], [2]]
    assert rows(with_capacity(scores, 2, 1, order="rank")) == [[0], [1, 2]]
    rerouted = with_capacity(scores, 2, 1, order="rank", overflow="reroute")
    assert rows(rerouted) == [[0, 2], [1]]


def test_weights_that_are_not_normalised_are_those_of_the_branch_that_was_taken():
    scores = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    route = with_capacity(scores, 1, 1, overflow="reroute", renormalize=False)
    assert_close(route.weights, scores.softmax(1)[[0, 1], [0, 1]])
    gated = with_capacity(scores, 1, 1, renormalize=False, weigh=torch.sigmoid)
    assert_close(gated.weights, torch.tensor([3.0]).sigmoid())


@pytest.mark.parametrize("capacity", [0, -1, 1.5])
def test_a_capacity_below_one_is_refused(capacity):
    with pytest.raises(RouteError, match=f"capacity .* at least 1, got {capacity}"):
        expert_choice(torch.randn(3, 2), capacity)
    with pytest.raises(RouteError, match=f"capacity .* at least 1, got {capacity}"):
        with_capacity(torch.randn(3, 2), 1, capacity)


def test_unknown_words_are_refused_with_those_known():
    with pytest.raises(RouteError, match="overflow must be one of drop, reroute, got 'wait'"):
        with_capacity(torch.randn(3, 2), 1, 1, overflow="wait")
    with pytest.raises(
        RouteError, match="order must be one of position, score, rank, got 'random'"
    ):
        with_capacity(torch.randn(3, 2), 1, 1, order="random")
