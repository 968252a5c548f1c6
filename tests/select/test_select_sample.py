import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import eligible, rows, scores
from torch.testing import assert_close

from pointsman.errors import RouteError
from pointsman.select import categorical, gumbel, top_k

fast = settings(max_examples=60, deadline=None)
MANY = 40_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@fast
@given(scores(), st.data(), st.integers(0, 99))
def test_exactly_k_distinct_branches_with_the_stated_weights(scores, data, seed):
    k = data.draw(st.integers(1, scores.shape[1]))
    route = categorical(scores, k, temperature=0.5, generator=seeded(seed)).validate()
    assert_close(route.branches_per_input(), eligible(scores).clamp(max=k))
    probabilities = (scores / 0.5).softmax(1).nan_to_num(0.0)
    assert_close(route.to_dense(), probabilities * route.mask())
    hard = gumbel(scores, k, generator=seeded(seed)).validate()
    assert_close(hard.branches_per_input(), eligible(scores).clamp(max=k))
    assert (hard.weights == 1).all()
    soft = gumbel(scores, k, hard=False, generator=seeded(seed)).validate()
    assert rows(soft) == rows(hard)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_categorical_draws_with_the_probabilities_of_the_softmax(temperature):
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5])
    route = categorical(scores.repeat(MANY, 1), temperature=temperature, generator=seeded())
    expected = (scores / temperature).softmax(0)
    assert_close(route.load() / MANY, expected, rtol=0, atol=0.01)


def test_draws_without_putting_back_are_in_order_of_drawing():
    scores = torch.tensor([1.0, 0.0, -1.0])
    p = scores.softmax(0)
    route = categorical(scores.repeat(MANY, 1), 2, generator=seeded())
    first, second = route.branches.view(-1, 2).unbind(1)
    for a in range(3):
        for b in range(3):
            expected = 0.0 if a == b else float(p[a] * p[b] / (1 - p[a]))
            seen = float(((first == a) & (second == b)).double().mean())
            assert seen == pytest.approx(expected, abs=0.01)


def test_the_temperature_of_gumbel_does_not_change_who_is_drawn():
    scores = torch.tensor([1.0, 0.0, -1.0]).repeat(MANY, 1)
    loads = [gumbel(scores, temperature=t, generator=seeded()).load() for t in (0.1, 1.0, 10.0)]
    assert loads[0].tolist() == loads[1].tolist() == loads[2].tolist()
    assert_close(loads[0] / MANY, scores[0].softmax(0), rtol=0, atol=0.01)


def test_a_small_temperature_is_greedy():
    scores = torch.randn(50, 5, generator=seeded())
    greedy = categorical(scores, 2, temperature=1e-6, generator=seeded())
    assert rows(greedy) == rows(top_k(scores, 2))
    assert_close(greedy.branches, top_k(scores, 2).branches)


def test_soft_weights_are_the_soft_draw_and_hard_ones_carry_its_gradient():
    scores = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    soft = gumbel(scores, 4, temperature=0.7, hard=False, generator=seeded())
    assert_close(soft.to_dense().sum(1), torch.ones(6, dtype=torch.float64))
    assert (soft.weights.view(6, 4).diff(dim=1) <= 0).all()  # drawn in order of the soft draw
    mix = torch.randn(12, dtype=torch.float64)
    soft_grad, hard_grad = (
        torch.autograd.grad(
            (gumbel(scores, 2, temperature=0.7, hard=h, generator=seeded()).weights * mix).sum(),
            scores,
        )[0]
        for h in (False, True)
    )
    assert_close(hard_grad, soft_grad)
    assert (hard_grad != 0).any()


def test_a_small_temperature_makes_the_soft_draw_one_hot():
    soft = gumbel(torch.randn(9, 4), temperature=1e-4, hard=False, generator=seeded())
    assert_close(soft.weights, torch.ones(9))


@pytest.mark.parametrize("draw", [categorical, gumbel])
def test_draws_follow_the_generator_or_the_global_seed(draw):
    scores = torch.randn(50, 6)
    draws = [rows(draw(scores, 2, generator=seeded(s))) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    torch.manual_seed(3)
    first = rows(draw(scores, 2))
    assert rows(draw(scores, 2)) != first
    torch.manual_seed(3)
    assert rows(draw(scores, 2)) == first


@pytest.mark.parametrize("draw", [categorical, gumbel])
@pytest.mark.parametrize("temperature", [0.0, -1.0, torch.inf, torch.nan])
def test_a_temperature_must_be_above_zero(draw, temperature):
    with pytest.raises(RouteError, match=f"temperature must be .* got {temperature}"):
        draw(torch.randn(3, 2), temperature=temperature)
