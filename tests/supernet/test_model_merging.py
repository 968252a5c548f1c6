"""Merges: weights, surrogates that are exact where the metric is quadratic, fronts in the box."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.merging import QuadraticSurrogate, amortised_front, design, merge


def test_a_merge_adds_shares_of_the_task_vectors() -> None:
    base = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}
    tuned = [
        {"w": torch.tensor([2.0, 2.0]), "count": torch.tensor(9)},
        {"w": torch.tensor([1.0, 4.0]), "count": torch.tensor(9)},
    ]
    merged = merge(base, tuned, [0.5, 1.0])
    assert_close(merged["w"], torch.tensor([1.5, 4.0]))
    assert merged["count"] == 3
    assert_close(merge(base, tuned, [0.0, 0.0])["w"], base["w"])
    assert base["w"].tolist() == [1.0, 2.0]


def test_a_quadratic_metric_is_met_exactly_from_twelve_merges() -> None:
    def metric(shares: np.ndarray) -> np.ndarray:
        return 0.3 + shares[:, 0] - 2 * shares[:, 0] * shares[:, 1] + 0.5 * shares[:, 1] ** 2

    shares = design(2)
    assert shares.shape == (12, 2)
    assert len(np.unique(shares, axis=0)) == 12
    model = QuadraticSurrogate().fit(shares, metric(shares))
    new = np.random.default_rng(0).random((50, 2))
    np.testing.assert_allclose(model.predict(new), metric(new), atol=1e-10)


@pytest.mark.parametrize(
    ("link", "low", "high"), [("sigmoid", 0.0, 1.0), ("softplus", 0.0, np.inf)]
)
def test_a_link_keeps_predictions_in_its_range(link: str, low: float, high: float) -> None:
    shares = design(2)
    metric = np.where(shares.sum(axis=1) > 1, 1.0, 0.0)
    model = QuadraticSurrogate(link).fit(shares, metric)  # type: ignore[arg-type]
    found = model.predict(np.random.default_rng(0).uniform(-3, 3, (100, 2)))
    assert found.min() >= low
    assert found.max() <= high


def test_the_front_of_two_parabolas_is_the_line_between_their_tops() -> None:
    shares = design(2)
    tops = ([0.2, 0.4], [0.8, 0.4])
    models = [QuadraticSurrogate().fit(shares, -((shares - t) ** 2).sum(axis=1)) for t in tops]
    found = amortised_front(models, 2, population=20, generations=40)
    assert found.min() >= 0
    assert found.max() <= 1
    assert np.abs(found[:, 1] - 0.4).max() < 0.05
    assert found[:, 0].min() < 0.3
    assert found[:, 0].max() > 0.7
    again = amortised_front(models, 2, population=20, generations=40)
    assert (found == again).all()


def test_what_cannot_be_merged_is_refused() -> None:
    base = {"w": torch.zeros(2)}
    with pytest.raises(InputError, match="1 models, 2 shares"):
        merge(base, [base], [0.5, 0.5])
    with pytest.raises(InputError, match="differs from the base in 'w'"):
        merge(base, [{"w": torch.zeros(3)}], [0.5])
    with pytest.raises(InputError, match="6 coefficients need as many merges, got 5"):
        QuadraticSurrogate().fit(np.zeros((5, 2)), np.zeros(5))
    with pytest.raises(InputError, match="at least two tasks"):
        amortised_front([], 2)
