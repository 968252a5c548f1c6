"""What every exported router keeps to, whatever it is made of."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from router_logs import Made, every_router, fitted, made, new

from pointsman.errors import InputError
from pointsman.pool import routers
from pointsman.pool.features.features import Features

LOG = made()
QUERIES = made(60, seed=1).features
EVERY = pytest.mark.parametrize("name", every_router())
# Half a win and half a loss imagined, and nothing but the penalty that holds back: near the mean.
SMOOTHED = {"Linear"}
# Sums of other routers' sums: equal but for the last bits where rows or models change places.
SUMMED = {"Blend"}
# It holds queries out to weigh routers, so it refuses logs where that cannot be done.
HOLDS_OUT = {"Blend"}


@pytest.fixture(scope="module")
def ready() -> Any:
    """Routers fitted on LOG, each once."""
    cache: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in cache:
            cache[name] = fitted(name, LOG)
        return cache[name]

    return get


def same(one: routers.Prediction, other: routers.Prediction, summed: bool = False) -> None:
    near = 1e-9 if summed else 0.0
    assert_allclose(one.quality, other.quality, rtol=0, atol=near)
    assert_array_equal(one.cost, other.cost)


def refused_where_held_out(name: str, log: Made) -> bool:
    """Whether the router is one that must refuse such a log; fails where it does not."""
    if name in HOLDS_OUT:
        with pytest.raises(InputError, match="too few"):
            fitted(name, log)
    return name in HOLDS_OUT


@EVERY
def test_predictions_are_finite_float64_of_the_right_shape(ready: Any, name: str) -> None:
    quality, cost = ready(name).predict(QUERIES)
    for cells in (quality, cost):
        assert cells.shape == (60, 3)
        assert cells.dtype == np.float64
        assert np.isfinite(cells).all()
    assert (cost >= 0).all()
    assert ((quality > -0.7) & (quality < 1.7)).all()


@EVERY
def test_has_a_name_and_a_title_of_its_own(name: str) -> None:
    others = [getattr(routers, other) for other in every_router() if other != name]
    router = getattr(routers, name)
    assert router.name
    assert router.title
    assert router.name not in {other.name for other in others}
    assert router.title not in {other.title for other in others}


@EVERY
def test_fitting_leaves_the_log_as_it_is(name: str) -> None:
    log = made(60)
    fitted(name, log)
    again = made(60)
    assert_array_equal(log.features.dense, again.features.dense)
    assert_array_equal(log.features.sparse.toarray(), again.features.sparse.toarray())
    assert_array_equal(log.quality, again.quality)
    assert_array_equal(log.cost, again.cost)


@EVERY
def test_fitting_again_gives_the_same_bits(ready: Any, name: str) -> None:
    same(ready(name).predict(QUERIES), fitted(name, LOG).predict(QUERIES))


@EVERY
def test_the_order_of_rows_does_not_matter(ready: Any, name: str) -> None:
    shuffled = LOG.take(np.random.default_rng(3).permutation(len(LOG.quality)))
    same(ready(name).predict(QUERIES), fitted(name, shuffled).predict(QUERIES), name in SUMMED)


@EVERY
def test_the_order_of_models_does_not_matter(ready: Any, name: str) -> None:
    order = [2, 0, 1]
    quality, cost = ready(name).predict(QUERIES)
    other = fitted(name, LOG.models(order)).predict(QUERIES)
    same(routers.Prediction(quality[:, order], cost[:, order]), other, name in SUMMED)


@EVERY
def test_rows_without_any_known_cell_change_nothing(ready: Any, name: str) -> None:
    if name in HOLDS_OUT:
        pytest.xfail("they change which queries are held out together")
    nothing = np.full((20, 3), np.nan)
    features = stacked(LOG.features, made(20, seed=5).features)
    log = Made(
        features, np.concatenate([LOG.quality, nothing]), np.concatenate([LOG.cost, nothing])
    )
    same(ready(name).predict(QUERIES), fitted(name, log).predict(QUERIES))


@EVERY
def test_missing_cells_are_not_taken_as_zero(name: str) -> None:
    log = made(200, missing=0.0)
    quality = log.quality.copy()
    quality[::2, 0] = np.nan
    quality[1::2, 0] = 1.0  # always right where it was asked
    predicted = fitted(name, log._replace(quality=quality)).predict(QUERIES).quality[:, 0]
    assert predicted.mean() > 0.9


@EVERY
def test_a_log_written_twice_gives_equal_answers_to_equal_queries(name: str) -> None:
    twice = np.concatenate([np.arange(160), np.arange(160)])
    predicted = fitted(name, LOG.take(twice)).predict(LOG.features.take(twice))
    same(
        routers.Prediction(*(cells[:160] for cells in predicted)),
        routers.Prediction(*(cells[160:] for cells in predicted)),
    )


@EVERY
def test_equal_models_are_predicted_equal(name: str) -> None:
    quality, cost = fitted(name, LOG.models([0, 1, 0, 2, 0])).predict(QUERIES)
    for copy in (2, 4):
        assert_array_equal(quality[:, 0], quality[:, copy])
        assert_array_equal(cost[:, 0], cost[:, copy])


@EVERY
def test_one_query_is_predicted_as_in_a_batch(ready: Any, name: str) -> None:
    batch = ready(name).predict(QUERIES)
    for row in range(0, 60, 7):
        one = ready(name).predict(QUERIES.take([row]))
        same(one, routers.Prediction(batch.quality[[row]], batch.cost[[row]]))


@EVERY
def test_permuted_queries_permute_predictions(ready: Any, name: str) -> None:
    order = np.random.default_rng(4).permutation(60)
    batch = ready(name).predict(QUERIES)
    permuted = ready(name).predict(QUERIES.take(order))
    same(permuted, routers.Prediction(batch.quality[order], batch.cost[order]))


@EVERY
def test_state_is_plain_and_brings_back_every_bit(ready: Any, name: str) -> None:
    plain, arrays = ready(name).to_state()
    assert all(array.dtype.kind in "fiub" for array in arrays.values())
    kept = {key: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for key, a in arrays.items()}
    back = getattr(routers, name).from_state(json.loads(json.dumps(plain)), kept)
    same(ready(name).predict(QUERIES), back.predict(QUERIES))
    again = back.to_state()
    assert json.loads(json.dumps(again[0])) == json.loads(json.dumps(plain))
    assert again[1].keys() == arrays.keys()


@EVERY
@pytest.mark.parametrize("without", ["sparse", "task", "dense"])
def test_does_without_a_kind_of_feature(name: str, without: str) -> None:
    gone = np.zeros((160, 0), dtype=np.float32) if without == "dense" else None
    features = replace(LOG.features, **{without: gone})
    predicted = fitted(name, LOG._replace(features=features)).predict(features)
    assert np.isfinite(predicted.quality).all()


@EVERY
def test_constant_features_give_every_query_the_mean(name: str) -> None:
    n = 160
    features = Features(np.ones((n, 4), np.float32), None, np.full(n, 50.0, np.float32))
    if refused_where_held_out(name, LOG._replace(features=features)):
        return
    quality, _ = fitted(name, LOG._replace(features=features)).predict(features)
    assert (np.ptp(quality, axis=0) == 0).all()
    near = 0.02 if name in SMOOTHED else 1e-9
    assert_allclose(quality[0], np.nanmean(LOG.quality, axis=0), atol=near)


@EVERY
def test_one_training_query_for_each_model(name: str) -> None:
    quality = np.full((3, 3), np.nan)
    np.fill_diagonal(quality, [1.0, 0.0, 1.0])
    log = made(3)._replace(quality=quality, cost=np.where(np.isnan(quality), np.nan, 2.0))
    if refused_where_held_out(name, log):
        return
    predicted = fitted(name, log).predict(QUERIES)
    assert np.isfinite(predicted.quality).all()
    assert (predicted.quality[:, 0] > predicted.quality[:, 1]).all()
    assert_allclose(predicted.cost, 2.0)


@EVERY
def test_a_single_training_query(name: str) -> None:
    log = made(1, missing=0.0)
    if refused_where_held_out(name, log):
        return
    predicted = fitted(name, log).predict(QUERIES)
    assert np.isfinite(predicted.quality).all()


@EVERY
def test_a_single_model(name: str) -> None:
    predicted = fitted(name, LOG.models([1])).predict(QUERIES)
    assert predicted.quality.shape == (60, 1)
    assert np.isfinite(predicted.quality).all()


@EVERY
def test_a_perfect_model_is_predicted_near_perfect(name: str) -> None:
    quality = LOG.quality.copy()
    quality[:, 1] = 1.0
    predicted = fitted(name, LOG._replace(quality=quality)).predict(QUERIES).quality
    assert predicted[:, 1].mean() > 0.93
    assert (predicted[:, 1] > 0.75).all()


@EVERY
def test_a_model_of_few_known_cells_stays_near_its_mean(name: str) -> None:
    quality = LOG.quality.copy()
    quality[:, 2] = np.nan
    quality[:4, 2] = [1.0, 0.0, 1.0, 0.0]
    predicted = fitted(name, LOG._replace(quality=quality)).predict(QUERIES).quality[:, 2]
    assert (np.abs(predicted - 0.5) < (0.45 if name in SMOOTHED else 0.35)).all()


@EVERY
def test_continuous_qualities_keep_their_scale(name: str) -> None:
    quality = 0.3 + 0.1 * LOG.quality
    predicted = fitted(name, LOG._replace(quality=quality)).predict(LOG.features).quality
    assert_allclose(predicted.mean(axis=0), np.nanmean(quality, axis=0), atol=0.03)
    assert ((predicted > 0.15) & (predicted < 0.55)).all()


@EVERY
def test_ties_do_not_flip_with_the_order_in_the_log(name: str) -> None:
    # Two models, mostly equal scores: argmax labels would follow whichever stands first.
    rng = np.random.default_rng(7)
    log = made(160, models=2, missing=0.0)
    both = (rng.random(160) < 0.7).astype(np.float64)
    log = log._replace(quality=np.stack([both, both], axis=1))
    log.quality[:6] = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    first = fitted(name, log).predict(QUERIES).quality
    rows = np.arange(159, -1, -1)
    second = fitted(name, log.take(rows).models([1, 0])).predict(QUERIES).quality
    assert_array_equal(first[:, 0] > first[:, 1], second[:, 1] > second[:, 0])
    assert_array_equal(first[:, 0] == first[:, 1], second[:, 1] == second[:, 0])


@EVERY
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quality": np.ones((159, 3))}, "160 rows, got"),
        ({"quality": np.where([True, False, True], LOG.quality, np.nan)}, "no known quality"),
        ({"cost": np.where([True, True, False], LOG.cost, np.nan)}, "no known cost"),
        ({"quality": np.where([True, True, False], LOG.quality, np.inf)}, "finite"),
    ],
)
def test_refuses_logs_that_cannot_be_learned_from(
    name: str, change: dict[str, Any], says: str
) -> None:
    log = LOG._replace(**change)
    if name in HOLDS_OUT and says == "160 rows, got":
        pytest.xfail("the parts are drawn before the shapes are looked at")
    with pytest.raises(InputError, match=None if name in HOLDS_OUT else says):
        new(name).fit(log.features, log.quality, log.cost)


@EVERY
def test_refuses_features_of_another_width(ready: Any, name: str) -> None:
    if name in {"Constant", "PerTask", "PromptLength"}:
        return  # they look at no dense feature
    other = replace(QUERIES, dense=QUERIES.dense[:, :4], sparse=QUERIES.sparse[:, :4])
    with pytest.raises(InputError, match="fitted on"):
        ready(name).predict(other)


def stacked(one: Features, other: Features) -> Features:
    from scipy.sparse import vstack

    return Features(
        np.concatenate([one.dense, other.dense]),
        vstack([one.sparse, other.sparse], format="csr"),
        np.concatenate([one.length, other.length]),
        np.concatenate([one.task, other.task]),
    )
