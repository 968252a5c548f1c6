import numpy as np
import pytest

from pointsman.errors import InputError
from pointsman.supernet.predictors import GaussianProcess, QualityPredictor, regressions
from pointsman.supernet.predictors.gaussian import coordinates
from pointsman.supernet.space import Choice, Space

SPACE = Space([Choice("n", (4, 1, 2)), Choice("kind", ("a", "b")), Choice("m", (1, 2, 3, 4))])


def observed(count, seed=0):
    rng = np.random.default_rng(seed)
    x_ND, c_N1 = rng.random((count, 3)), rng.random((count, 1))
    return x_ND, c_N1, x_ND.sum(1) + c_N1[:, 0]


def test_numbers_are_ordered_and_kinds_are_apart():
    found = coordinates(SPACE, np.array([[0, 0, 0], [1, 1, 3], [2, 0, 1]]))
    assert found.tolist() == [[1, 0.5, 0, 0], [0, 0, 0.5, 1], [0.5, 0.5, 0, 1 / 3]]


def test_the_process_agrees_with_inverting_its_covariance():

    x, c, y = observed(12)
    process = GaussianProcess().choose(x, c, y).fit(x, c, y)
    own = process.kernel(x, c, x, c) + process.nugget_ * np.eye(12)
    inverse = np.linalg.inv(own)
    ones = np.ones(12)
    mean = ones @ inverse @ y / (ones @ inverse @ ones)
    at_x, at_c, _ = observed(5, seed=1)
    shared = process.kernel(x, c, at_x, at_c)
    posterior = process.at(at_x, at_c)
    np.testing.assert_allclose(posterior.mean, mean + (y - mean) @ inverse @ shared, atol=1e-9)
    variance = 1 + process.nugget_ - np.einsum("nm,nk,km->m", shared, inverse, shared)
    np.testing.assert_allclose(posterior.spread, np.sqrt(process.scale_ * variance), atol=1e-9)


def test_an_answer_is_worth_as_much_as_a_new_fit():
    x, c, y = observed(12)
    at_x, at_c, at_y = observed(6, seed=1)
    process = GaussianProcess().choose(x, c, y).fit(x, c, y)
    posterior = process.at(at_x, at_c, room=2)
    narrower = posterior.spread
    posterior.ask(1)
    posterior.ask(4)
    assert (posterior.spread < narrower).all()
    posterior.answer([at_y[1], at_y[4]])

    everything = np.concatenate([y, at_y[[1, 4]]])
    x2, c2 = np.concatenate([x, at_x[[1, 4]]]), np.concatenate([c, at_c[[1, 4]]])
    inverse = np.linalg.inv(process.kernel(x2, c2, x2, c2) + process.nugget_ * np.eye(14))
    shared = process.kernel(x2, c2, at_x, at_c)
    expected = process.mean_ + (everything - process.mean_) @ inverse @ shared
    np.testing.assert_allclose(posterior.mean, expected, atol=1e-9)


def test_the_process_learns_a_slope():
    x, c, y = observed(60)
    process = GaussianProcess().choose(x, c, y).fit(x, c, y)
    at_x, at_c, at_y = observed(50, seed=1)
    posterior = process.at(at_x, at_c)
    assert np.corrcoef(posterior.mean, at_y)[0, 1] > 0.9


def test_a_process_refuses_what_is_not_a_number():
    x, c, _ = observed(3)
    with pytest.raises(InputError, match="fitted to numbers"):
        GaussianProcess().choose(x, c, np.array([1, np.nan, 2]))


def table(count, seed=0):
    rng = np.random.default_rng(seed)
    genotypes = [SPACE.sample(rng) for _ in range(count)]
    return genotypes, [float(g[0] + 2 * g[2] + 0.3 * rng.normal()) for g in genotypes]


def test_the_predictor_takes_the_regression_that_misses_least():
    genotypes, quality = table(60)
    predictor = QualityPredictor(SPACE, regressions(forest=True)).fit(genotypes, quality)
    assert predictor.errors_[predictor.chosen_] == min(predictor.errors_.values())
    assert len(predictor.errors_) == 4
    held, truth = table(60, seed=1)
    assert np.corrcoef(predictor.predict(held), truth)[0, 1] > 0.95


def test_the_spread_covers_the_share_asked_for():
    genotypes, quality = table(80)
    predictor = QualityPredictor(SPACE).fit(genotypes, quality)
    held, truth = table(400, seed=1)
    missed = np.abs(predictor.predict(held) - truth)
    for share in (0.5, 0.68, 0.9):
        assert (missed <= predictor.spread(share)).mean() == pytest.approx(share, abs=0.1)
    with pytest.raises(InputError, match="between 0 and 1"):
        predictor.spread(1.0)


def test_a_predictor_needs_two_numbers():
    with pytest.raises(InputError, match="at least two genotypes"):
        QualityPredictor(SPACE).fit([(0, 0, 0)], [1.0])
