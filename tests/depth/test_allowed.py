"""Thresholds from an allowed loss: the formula by hand, its ends, and the cascade's own rule."""

import itertools
import math

import pytest
import torch

from pointsman.depth.allowed import allowed_loss
from pointsman.errors import InputError
from pointsman.pool import Cascade
from pointsman.select import max_probability


def logits(inputs=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (inputs,), generator=generator)
    values = torch.randn(3, inputs, 4, generator=generator, dtype=torch.float64)
    strength = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None, None]
    return values + strength * torch.nn.functional.one_hot(labels, 4), labels


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.05, 0.2])
def test_thresholds_answer_whom_the_formula_answers(epsilon):
    values, labels = logits()
    found = allowed_loss(values, labels, epsilon, min_count=10)
    assert found[-1] == -math.inf
    for at in range(2):
        sure = max_probability(values[at])
        right = values[at].argmax(dim=1) == labels
        accuracy = {
            float(t): float(right[sure >= t].double().mean())
            for t in sure
            if int((sure >= t).sum()) >= 10
        }
        best = max(accuracy.values())
        least = min(t for t, a in accuracy.items() if a >= best - epsilon - 1e-12)
        assert torch.equal(sure >= found[at], sure >= least)


def test_it_is_the_rule_that_cascades_of_models_follow():
    values, labels = logits()
    rows = torch.arange(300.0)[:, None].numpy()
    members = [lambda X, p=p: p[X[:, 0].astype(int)] for p in values.softmax(dim=2).numpy()]
    cascade = Cascade(members, costs=None).fit(rows, labels.numpy())
    for epsilon in (0, 0.02, 0.1, 1):
        expected = cascade.at(f"epsilon={epsilon}").thresholds_
        assert allowed_loss(values, labels, epsilon)[:-1] == pytest.approx(expected.tolist())


def test_a_larger_loss_never_asks_for_more_confidence():
    values, labels = logits()
    rows = [allowed_loss(values, labels, e)[:-1] for e in (0, 0.01, 0.05, 0.3, 1)]
    pairs = [zip(one, two, strict=True) for one, two in itertools.pairwise(rows)]
    assert all(a >= b for pair in pairs for a, b in pair)
    assert rows[-1] == (-math.inf, -math.inf)


def test_too_few_inputs_leave_an_exit_out():
    values, labels = logits(inputs=5)
    assert allowed_loss(values, labels, 0.1) == (math.inf, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, y: allowed_loss(x[0], y, 0.1), "logits are"),
        (lambda x, y: allowed_loss(x, y[1:], 0.1), "logits are"),
        (lambda x, y: allowed_loss(x, y, 1.5), "epsilon is a share"),
        (lambda x, y: allowed_loss(x, y, 0.1, min_count=0), "count at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call(*logits())
    assert "\n" not in str(caught.value)
