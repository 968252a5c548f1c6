"""Pieces of a layer over three resources: simulated time, its closed form, and the gaps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pointsman.errors import InputError
from pointsman.moe.parallel import (
    LayerCosts,
    Line,
    choose_degree,
    place_gradients,
    predict,
    simulate,
)

lines = st.builds(Line, st.floats(1e-6, 1e-3), st.floats(1e-9, 1e-6))
layers = st.builds(LayerCosts, lines, lines, lines)


def test_one_piece_takes_its_five_stages_in_turn() -> None:
    costs = LayerCosts(Line(1, 0), Line(2, 0), Line(5, 0))
    found = simulate(costs, 10, 1)
    assert found.seconds == predict(costs, 10, 1) == 1 + 2 + 5 + 2 + 1
    assert found.busy == (2, 4, 5)
    assert found.gaps == ((1, 10),)


def test_two_pieces_overlap_as_drawn() -> None:
    # inter    D1 D2 .  .  .  C1 .  C2
    # intra    .  A1 A2 .  S1 .  S2 .
    # compute  .  .  X1 X1 X2 X2 .  .
    costs = LayerCosts(Line(0, 1), Line(0, 1), Line(0, 2))
    found = simulate(costs, 2, 2)
    assert found.seconds == predict(costs, 2, 2) == 8
    assert found.gaps == ((2, 5), (6, 7))


@settings(max_examples=25, deadline=None)
@given(layers, st.floats(1, 1e5), st.integers(1, 12))
def test_the_closed_form_is_a_lower_bound(costs: LayerCosts, size: float, degree: int) -> None:
    found = simulate(costs, size, degree)
    assert found.seconds >= predict(costs, size, degree) * (1 - 1e-9)
    assert found.seconds >= max(found.busy) * (1 - 1e-9)
    idle = sum(end - begin for begin, end in found.gaps)
    assert_allclose(idle + found.busy[0], found.seconds)  # the links begin and end every layer


@settings(max_examples=25, deadline=None)
@given(layers, st.floats(1, 1e5))
def test_free_beginnings_want_many_pieces_and_dear_ones_want_one(
    costs: LayerCosts, size: float
) -> None:
    free = LayerCosts(*(Line(0, line.beta) for line in (costs.inter, costs.intra, costs.compute)))
    best = predict(free, size, choose_degree(free, size, limit=64))
    assert_allclose(best, predict(free, size, 64))
    dear = LayerCosts(Line(1e3, 1e-9), Line(1e3, 1e-9), Line(1e3, 1e-9))
    assert choose_degree(dear, size) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(layers, st.floats(0, 1e6)), min_size=1, max_size=4), lines)
def test_gradients_in_gaps_never_take_longer(
    costs: list[tuple[LayerCosts, float]], line: Line
) -> None:
    ran = [simulate(layer.backward(), 1e4, 3) for layer, _ in costs]
    sizes = [size for _, size in costs]
    spread, end = (place_gradients(ran, sizes, line, gaps=gaps) for gaps in (True, False))
    assert spread.seconds <= end.seconds * (1 + 1e-9)
    assert_allclose(spread.hidden + spread.left, sum(sizes))
    assert spread.left >= sizes[-1] * (1 - 1e-9)  # ready when everything else is done
    assert end.hidden == 0


def test_the_backward_pass_computes_twice_as_long() -> None:
    costs = LayerCosts(Line(1, 0), Line(2, 0), Line(5, 1))
    assert costs.backward() == LayerCosts(Line(1, 0), Line(2, 0), Line(10, 2))


def test_misuse_is_refused() -> None:
    costs = LayerCosts(Line(1, 0), Line(2, 0), Line(5, 1))
    with pytest.raises(InputError, match="at least one piece, got 4 rows in 0"):
        simulate(costs, 4, 0)
    with pytest.raises(InputError, match="a limit of 0"):
        choose_degree(costs, 4, limit=0)
    with pytest.raises(InputError, match="for each of 1 layers"):
        place_gradients([simulate(costs, 4, 1)], [], Line(0, 1))
