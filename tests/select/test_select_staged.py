import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from select_strategies import rows, scores
from torch.testing import assert_close

from pointsman.cost import Cost
from pointsman.errors import RouteError
from pointsman.select import first_confident, margin, max_probability, negative_entropy, window

fast = settings(max_examples=60, deadline=None)


def asked_one_by_one(confidences, thresholds):
    """Stages that each input visits, in order."""
    visited = []
    for row in confidences.tolist():
        answering = next((s for s, c in enumerate(row[:-1]) if c >= thresholds[s]), len(row) - 1)
        visited.append(list(range(answering + 1)))
    return visited


@fast
@given(scores(), st.data())
def test_stages_are_visited_until_one_is_confident(confidences, data):
    levels = st.sampled_from([-torch.inf, -1.0, 0.0, 0.5, 1.0, torch.inf])
    stages = confidences.shape[1]
    thresholds = data.draw(st.lists(levels, min_size=stages, max_size=stages))
    route = first_confident(confidences, thresholds).validate()
    expected = asked_one_by_one(confidences, thresholds)
    assert rows(route) == expected
    assert_close(route.answered_by(), torch.tensor([v[-1] for v in expected], dtype=torch.int64))
    weights = [w for v in expected for w in [0.0] * (len(v) - 1) + [1.0]]
    assert route.weights.tolist() == weights
    prices = np.arange(1.0, stages + 1)
    spent = route.cost(Cost(prices, "MFLOPs")).amount
    np.testing.assert_allclose(spent, [prices[: len(v)].sum() for v in expected])


def test_extreme_thresholds_are_the_first_and_the_last_stage():
    confidences = torch.rand(5, 3)
    assert first_confident(confidences, [-torch.inf] * 3).answered_by().tolist() == [0] * 5
    assert first_confident(confidences, [torch.inf] * 3).answered_by().tolist() == [2] * 5
    assert first_confident(confidences[:, :1], [torch.inf]).answered_by().tolist() == [0] * 5


def test_the_threshold_itself_is_confident_enough_in_the_type_of_the_confidences():
    for dtype in (torch.float32, torch.float64):
        confidences = torch.tensor([[0.9, 0.0]], dtype=dtype)
        assert first_confident(confidences, [0.9, 1.0]).answered_by().tolist() == [0]
        thresholds = torch.tensor([0.9, 1.0], dtype=dtype)
        assert first_confident(confidences, thresholds).answered_by().tolist() == [0]


@pytest.mark.parametrize(
    ("confidences", "thresholds", "message"),
    [
        (torch.rand(2, 3), [0.5, 0.5], r"got 3 stages and thresholds of shape \(2,\)"),
        (torch.rand(2, 0), [], "at least one stage"),
        (torch.rand(2, 2), [torch.nan, 0.5], "thresholds must be numbers, got"),
    ],
)
def test_thresholds_must_fit_the_stages(confidences, thresholds, message):
    with pytest.raises(RouteError, match=message):
        first_confident(confidences, thresholds)


@fast
@given(scores(max_branches=1), st.floats(-2, 2), st.floats(0, 2))
def test_a_window_passes_on_what_lies_inside(scores, low, size):
    scores, high = scores[:, 0], low + size
    expected = [low <= s <= high for s in scores.tolist()]
    assert window(scores, low, high).tolist() == expected


def test_a_window_includes_its_bounds_and_refuses_crossed_ones():
    scores = torch.tensor([0.0, 0.5, 1.0])
    assert window(scores, 0.0, 0.5).tolist() == [True, True, False]
    assert window(scores, -torch.inf, torch.inf).all()
    for low, high in ((1.0, 0.0), (torch.nan, 1.0)):
        with pytest.raises(RouteError, match="low bound must not be above"):
            window(scores, low, high)
    with pytest.raises(RouteError, match=r"shape \(inputs,\)"):
        window(scores[None], 0.0, 1.0)


@fast
@given(scores())
def test_confidences_equal_their_formulas_and_stay_in_range(logits):
    live = (logits > -torch.inf).any(1)
    logits = logits[live]
    p, classes = logits.softmax(1), logits.shape[1]
    best = torch.cat([p, torch.zeros(len(p), 1, dtype=p.dtype)], 1).sort(descending=True).values
    assert_close(max_probability(logits), best[:, 0])
    assert_close(margin(logits), best[:, 0] - best[:, 1])
    assert_close(negative_entropy(logits), -torch.special.entr(p).sum(1))
    for measure, low, high in (
        (max_probability, 1 / classes, 1.0),
        (margin, 0.0, 1.0),
        (negative_entropy, -math.log(classes), 0.0),
    ):
        assert ((measure(logits) >= low - 1e-12) & (measure(logits) <= high + 1e-12)).all()


MEASURES = pytest.mark.parametrize("measure", [max_probability, margin, negative_entropy])


@MEASURES
def test_a_surer_model_has_a_higher_confidence(measure):
    logits = torch.tensor([[1.0, 0.0, 0.0]]) * torch.tensor([0.1, 1.0, 5.0])[:, None]
    assert (measure(logits).diff() > 0).all()


@MEASURES
def test_half_precision_is_measured_in_float32_and_float64_stays(measure):
    logits = torch.randn(4, 5)
    half = measure(logits.bfloat16())
    assert half.dtype == torch.float32
    assert_close(half, measure(logits.bfloat16().float()))
    assert measure(logits.double()).dtype == torch.float64


@MEASURES
def test_gradients_of_confidences_are_right_and_finite_for_impossible_classes(measure):
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [0.3, 0.2, 0.1]], dtype=torch.float64)
    possible = logits[:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(measure, (possible,))
    logits.requires_grad_()
    measure(logits).sum().backward()
    assert logits.grad.isfinite().all()


@MEASURES
def test_logits_must_be_numbers_of_the_right_shape(measure):
    for bad, message in (
        (torch.randn(3), r"shape \(inputs, classes\)"),
        (torch.randn(3, 0), "at least one class"),
        (torch.tensor([[0.0, torch.nan]]), "logits .* got nan at row 0, column 1"),
    ):
        with pytest.raises(RouteError, match=message):
            measure(bad)
    assert measure(torch.randn(0, 3)).shape == (0,)
    assert_close(measure(torch.randn(2, 1)).abs() % 1, torch.zeros(2))  # one class: 1, 1 or 0
