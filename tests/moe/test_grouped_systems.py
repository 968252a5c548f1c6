"""Grouped rows without padding, and slots of a fixed number."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from pointsman.errors import DegenerateWarning, InputError
from pointsman.moe.systems.grouped import (
    decode,
    encode,
    first_choices_first,
    megablocks,
    padded_rows,
    places,
    slots_per_expert,
    tutel,
)
from pointsman.route import Route
from pointsman.select import top_k
from pointsman.select.capacity import with_capacity


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(1, 6), st.data())
def test_places_are_those_of_counting_one_by_one(
    tokens: int, experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    scores_TE = torch.randn(tokens, experts)
    route = top_k(scores_TE.masked_fill(torch.rand(tokens, experts) < 0.3, -torch.inf), k)
    pairs = list(zip(route.inputs.tolist(), route.branches.tolist(), strict=True))
    choice = [sum(i == other for other, _ in pairs[:n]) for n, (i, _) in enumerate(pairs)]
    taken = [0] * experts
    expected = {}
    for _, pair in sorted((rank, pair) for pair, rank in enumerate(choice)):
        expert = pairs[pair][1]
        expected[pair] = taken[expert]
        taken[expert] += 1
    assert places(route).tolist() == [expected[pair] for pair in range(len(pairs))]


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0, -1.0])
def test_choices_within_the_slots_are_those_of_capacity_by_rank(factor: float) -> None:
    scores_TE = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    route = first_choices_first(scores_TE, 2, factor=factor)
    busiest = int(top_k(scores_TE, 2).load().max())
    slots = slots_per_expert(40, 5, 2, factor, busiest=busiest)
    expected = with_capacity(scores_TE, 2, slots, order="rank")
    assert_close(route.mask(), expected.mask())
    whole = top_k(scores_TE, 2).to_dense()
    assert_close(route.to_dense(), whole * route.mask())  # not divided anew
    assert int(route.load().max()) <= slots


def test_encode_and_decode_pass_gradcheck_and_return_rows() -> None:
    scores_TE = torch.randn(7, 3, dtype=torch.float64)
    route = first_choices_first(scores_TE, 2, factor=0.0)
    slots = int(route.load().max())
    x_TD = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    weights_N = route.weights.clone().requires_grad_()

    def run(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return decode(encode(x, route, slots).sin(), route.weighted(weights))

    assert torch.autograd.gradcheck(run, (x_TD, weights_N))
    assert_close(decode(encode(x_TD, route, slots), route), x_TD)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_the_layer_gives_what_slots_laid_out_give(factor: float) -> None:
    torch.manual_seed(0)
    moe = tutel(6, 12, 4, factor=factor)
    x_TD = torch.randn(20, 6)
    output, routing = moe(x_TD)
    slots = int(places(routing.route).max()) + 1
    sent_ECD = encode(x_TD, routing.route, slots)
    answers = moe.experts(sent_ECD.flatten(0, 1), torch.arange(5) * slots)
    assert_close(output, decode(answers.unflatten(0, (4, slots)), routing.route))


def test_no_tokens_and_no_slots_give_no_pairs() -> None:
    for factor in (0.0, 1.0, -1.0):
        assert len(first_choices_first(torch.zeros(0, 4), 2, factor=factor)) == 0
        assert tutel(6, 12, 4, factor=factor)(torch.zeros(0, 6))[0].shape == (0, 6)
    with pytest.warns(DegenerateWarning, match="taken by no expert of first_choices_first"):
        tutel(6, 12, 4, factor=0.1)(torch.randn(8, 6))


def test_slots_are_rounded_up_and_need_experts() -> None:
    assert slots_per_expert(60, 8, 2, 1.0, busiest=0, multiple=5) == 20
    assert slots_per_expert(60, 8, 2, 0.0, busiest=0) == 0
    with pytest.raises(InputError, match="at least one expert and a multiple of at least 1"):
        slots_per_expert(60, 0, 2, 1.0, busiest=0)


def test_blocks_are_filled_up_and_grouped_layers_drop_nothing() -> None:
    assert padded_rows(torch.tensor([0, 1, 16, 17]), 16) == 16 + 16 + 32
    moe = megablocks(6, 12, 4)
    output, routing = moe(torch.randn(9, 6))
    assert routing.route.branches_per_input().tolist() == [1] * 9
    assert output.any(dim=1).all()
    assert isinstance(moe.select, partial)
    assert isinstance(routing.route, Route)
