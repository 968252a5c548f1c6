"""Blends, forests and the linear router: what the battery of all routers does not cover."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.blend import Blend
from pointsman.pool.routers.constant import Constant
from pointsman.pool.routers.forest import Forest
from pointsman.pool.routers.linear import Linear
from pointsman.pool.routers.out_of_fold import out_of_fold, parts_by_content
from pointsman.pool.routers.prompt_length import PromptLength


def log(n=300, models=3, seed=0, learnable=True, missing=0.1):
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, 4)).astype(np.float32)
    scores = dense @ np.random.default_rng(9).normal(size=(4, models)) * 2 if learnable else 0
    quality = (rng.random((n, models)) < 1 / (1 + np.exp(-scores))).astype(float)
    quality[rng.random((n, models)) < missing] = np.nan
    length = rng.integers(10, 200, size=n).astype(np.float32)
    return Features(dense, None, length), quality, np.tile(np.arange(models) + 1.0, (n, 1))


def small(**keywords):
    return Blend((Linear(), PromptLength()), **{"then": Forest(trees=10), "parts": 3, **keywords})


# parts that are held out --------------------------------------------------------------------------


def test_equal_queries_share_a_part_whatever_the_order():
    features, *_ = log()
    twice = features.take(np.r_[0:300, 0:300])
    part = parts_by_content(twice, 5)
    assert_array_equal(part[:300], part[300:])
    order = np.random.default_rng(0).permutation(600)
    assert_array_equal(parts_by_content(twice.take(order), 5), part[order])
    assert np.bincount(part).min() > 80


def test_no_query_is_predicted_by_a_router_that_saw_it():
    features, quality, cost = log(missing=0)
    part = parts_by_content(features, 4)
    found = out_of_fold(Constant(), features, quality, cost, part)
    for number in range(4):
        assert_allclose(found[part == number][0], quality[part != number].mean(axis=0))


def test_a_model_scored_too_seldom_to_hold_out_is_named():
    features, quality, cost = log()
    quality[1:, 2] = np.nan
    with pytest.raises(InputError, match="model number 2"):
        small().fit(features, quality, cost)


# blend --------------------------------------------------------------------------------------------


def test_what_knows_the_differences_gets_the_weight():
    blend = small(then=None).fit(*log(n=600))
    linear, length = blend.weights_
    assert 0.6 < linear < 1.6
    assert length < 0.5
    assert (blend.weights_ >= 0).all()
    assert (blend.level_weights_ >= 0).all()


def test_where_nothing_can_be_learned_every_query_gets_about_the_means():
    features, quality, cost = log(n=1000, learnable=False)
    predicted = small().fit(features, quality, cost).predict(features).quality
    assert np.abs(predicted - np.nanmean(quality, axis=0)).mean() < 0.02


def test_it_is_no_worse_on_new_queries_than_the_routers_it_is_made_of():
    train, test = log(n=600, seed=1), log(n=2000, seed=2, missing=0)
    blend = small().fit(*train)

    def error(router):
        gap = router.predict(test[0]).quality - test[1]
        return np.square(gap - gap.mean(axis=1, keepdims=True)).mean()

    alone = [error(router.fit(*train)) for router in (Linear(), PromptLength())]
    assert error(blend) < min(alone) * 1.01


def test_its_prediction_is_the_weighted_sum_of_what_its_routers_say():
    features, quality, cost = log()
    blend = small(then=None).fit(features, quality, cost)
    expected = np.tile(np.nanmean(quality, axis=0), (300, 1))
    for at, router in enumerate(blend.routers_):
        beyond = router.predict(features).quality - blend.means_[at]
        level = beyond.mean(axis=1, keepdims=True)
        expected += blend.weights_[at] * (beyond - level) + blend.level_weights_[at] * level
    assert_allclose(blend.predict(features).quality, expected)


def test_the_given_routers_stay_unfitted():
    blend = small()
    blend.fit(*log())
    assert not hasattr(blend.routers[0], "intercept_")
    assert not hasattr(blend.then, "root_")


@pytest.mark.parametrize("keywords", [{"routers": ()}, {"parts": 1}])
def test_a_blend_of_nothing_is_refused(keywords):
    with pytest.raises(InputError, match="one router and two parts"):
        Blend(**keywords).fit(*log())


def test_order_of_rows_and_models_is_of_no_consequence():
    features, quality, cost = log()
    rows = np.random.default_rng(0).permutation(300)
    columns = [2, 0, 1]
    one = small().fit(features, quality, cost).predict(features)
    other = small().fit(features.take(rows), quality[rows][:, columns], cost[rows][:, columns])
    assert_allclose(other.predict(features).quality, one.quality[:, columns], atol=1e-8)


def test_a_blend_of_a_class_that_is_not_there_is_refused():
    plain, arrays = small(then=None).fit(*log()).to_state()
    with pytest.raises(PolicyError, match="'Popen'"):
        Blend.from_state({**plain, "classes": ["Linear", "Popen"]}, arrays)


def test_a_blend_comes_back_the_same_to_the_last_bit():
    features, quality, cost = log()
    blend = small(then=None).fit(features, quality, cost)
    back = Blend.from_state(*blend.to_state())
    assert_array_equal(back.predict(features).quality, blend.predict(features).quality)


# forest -------------------------------------------------------------------------------------------


def test_a_forest_walks_as_scikit_learn_does():
    from sklearn.ensemble import ExtraTreesRegressor

    features, quality, _ = log(models=1, missing=0)
    forest = Forest(trees=5, tried=1.0).fit(features, quality, np.ones_like(quality))
    x = np.concatenate([features.dense, np.log1p(features.length)[:, None]], axis=1)
    assert forest._leaves(x).shape == (300, 5)
    leaves = forest._leaves(x)
    for tree in range(5):
        for leaf in np.unique(leaves[:, tree]):
            inside = leaves[:, tree] == leaf
            expected = (quality[inside] - quality.mean()).sum() / (inside.sum() + 1)
            assert inside.sum() >= forest.least
            assert_allclose(forest.value_[leaf, 0], expected, atol=1e-6)
    sizes = [len(np.unique(leaves[:, tree])) for tree in range(5)]
    grown = ExtraTreesRegressor(5, min_samples_leaf=10, random_state=0).fit(x, quality[:, 0])
    assert min(sizes) > 0.5 * min(tree.get_n_leaves() for tree in grown.estimators_)


def test_a_forest_finds_what_no_line_can():
    rng = np.random.default_rng(0)
    dense = rng.uniform(-1, 1, size=(2000, 2)).astype(np.float32)
    right = dense[:, 0] * dense[:, 1] > 0
    quality = np.stack([right, ~right], axis=1).astype(float)
    features = Features(dense, None, np.ones(2000, dtype=np.float32))
    cost = np.ones((2000, 2))
    found = Forest(trees=20).fit(features.take(np.arange(1000)), quality[:1000], cost[:1000])
    best = found.predict(features.take(np.arange(1000, 2000))).quality.argmax(axis=1)
    assert (best == quality[1000:].argmax(axis=1)).mean() > 0.85


def test_one_query_alone_is_predicted_as_among_others():
    features, quality, cost = log()
    forest = Forest(trees=10).fit(features, quality, cost)
    whole = forest.predict(features).quality
    assert_array_equal(forest.predict(features.take([7])).quality[0], whole[7])


@pytest.mark.parametrize("keywords", [{"trees": 0}, {"least": 0}, {"tried": 0.0}, {"tried": 1.1}])
def test_a_forest_that_cannot_grow_is_refused(keywords):
    with pytest.raises(InputError, match="a forest needs"):
        Forest(**keywords).fit(*log())


# linear -------------------------------------------------------------------------------------------


def test_weights_equal_those_of_scikit_learn():
    features, quality, cost = log(n=500, missing=0)
    linear = Linear(penalty=2.0).fit(features, quality, cost)
    for model in range(3):
        expected = LogisticRegression(C=0.5, tol=1e-8).fit(features.dense, quality[:, model])
        assert_allclose(linear.dense_[model], expected.coef_[0], rtol=0.01, atol=0.01)
        assert_allclose(linear.intercept_[model], expected.intercept_[0], atol=0.02)


def test_a_model_that_is_always_right_gets_a_finite_chance():
    features, quality, cost = log(missing=0)
    quality[:, 1] = 1.0
    predicted = Linear().fit(features, quality, cost).predict(features).quality[:, 1]
    assert (predicted > 0.98).all()
    assert (predicted < 1).all()


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(InputError, match="penalty must be positive"):
        Linear(penalty=penalty).fit(*log())
