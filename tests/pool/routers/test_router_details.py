"""What single routers promise beyond the battery."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from router_logs import made

from pointsman.errors import InputError
from pointsman.pool import routers
from pointsman.pool.features.features import Features

LOG = made(300, missing=0.0)


def fit(router: routers.Router, log=LOG) -> routers.Router:
    return router.fit(log.features, log.quality, log.cost)


def test_per_task_falls_back_to_the_mean_where_the_task_is_not_known() -> None:
    router = fit(routers.PerTask())
    strange = replace(LOG.features, task=np.full(300, "cooking", dtype=object))
    none = replace(LOG.features, task=None)
    for features in (strange, none):
        quality, _ = router.predict(features)
        assert_allclose(quality, np.tile(LOG.quality.mean(axis=0), (300, 1)))


def test_per_task_gives_the_means_of_large_tasks() -> None:
    task = np.array(["a", "b"], dtype=object)[np.arange(4000) % 2]
    features = Features(
        np.arange(4000, dtype=np.float32)[:, None], None, np.ones(4000, np.float32), task
    )
    quality = np.stack([np.arange(4000) % 2, np.ones(4000)], axis=1).astype(np.float64)
    router = routers.PerTask().fit(features, quality, np.ones((4000, 2)))
    assert_allclose(router.predict(features).quality, quality, atol=0.02)


def test_nearest_neighbours_by_index_say_nearly_what_all_queries_say() -> None:
    exact, indexed = fit(routers.NearestNeighbours()), fit(routers.NearestNeighbours(exact=10))
    queries = made(50, seed=1).features
    one, other = exact.predict(queries).quality, indexed.predict(queries).quality
    assert np.abs(one - other).mean() < 0.01
    plain, arrays = indexed.to_state()
    back = routers.NearestNeighbours.from_state(plain, arrays)
    assert_array_equal(back.predict(queries).quality, other)
    shuffled = LOG.take(np.random.default_rng(0).permutation(300))
    again = fit(routers.NearestNeighbours(exact=10), shuffled)
    assert_array_equal(again.predict(queries).quality, other)


def test_one_of_several_equally_far_neighbours_does_not_decide() -> None:
    # Eight queries on the axes are equally far from the one asked; k takes in but three of them.
    dense = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    features = Features(dense, None, np.ones(8, np.float32))
    quality = np.array([[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 6)
    router = routers.NearestNeighbours(neighbours=(3,)).fit(features, quality, np.ones((8, 2)))
    asked = Features(np.zeros((1, 4), np.float32), None, np.ones(1, np.float32))
    assert_allclose(router.predict(asked).quality[0], quality.mean(axis=0), atol=1e-6)


def test_matrix_factorization_places_a_model_of_few_cells_by_what_it_shares() -> None:
    rng = np.random.default_rng(0)
    n = 800
    x = rng.normal(size=(n, 20)).astype(np.float32)
    need = x @ (rng.normal(size=20) / np.sqrt(20))
    taste = np.array([1.0, -1.0, 1.0, -1.0, 1.0])
    truth = 0.5 + 0.2 * need[:, None] * taste
    quality = truth + 0.2 * rng.normal(size=truth.shape)
    quality[40:, 4] = np.nan
    features = Features(x, None, np.ones(n, np.float32))
    ones = np.ones_like(truth)
    router = routers.MatrixFactorization().fit(features, quality, ones)
    predicted = router.predict(features).quality[40:, 4]
    assert np.corrcoef(predicted, truth[40:, 4])[0, 1] > 0.9
    assert router.embeddings_.shape == (5, 1)


def test_pairwise_counts_a_tie_as_half_a_win() -> None:
    n = 400
    features = Features(
        np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32),
        None,
        np.ones(n, np.float32),
    )
    tied = np.tile([[1.0, 1.0], [0.0, 0.0]], (n // 2, 1))
    tied[:40] = [1.0, 0.0]
    router = routers.Pairwise().fit(features, tied, np.ones_like(tied))
    gap = np.diff(router.predict(features).quality, axis=1)
    assert_allclose(gap, np.diff(tied.mean(axis=0))[0], atol=0.03)


def test_skill_profiles_read_the_words_of_a_query() -> None:
    from scipy.sparse import csr_matrix

    words = np.zeros((200, 3), np.float32)
    words[:100, 0], words[100:, 1], words[::2, 2] = 1.0, 1.0, 1.0
    quality = np.zeros((200, 2))
    quality[:100, 0], quality[100:, 1] = 1.0, 1.0
    dense = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    features = Features(dense, csr_matrix(words), np.ones(200, np.float32))
    router = routers.SkillProfile().fit(features, quality, np.ones((200, 2)))
    assert_array_equal(router.predict(features).quality.argmax(axis=1), quality.argmax(axis=1))
    strange = replace(features, sparse=csr_matrix((200, 3), dtype=np.float32))
    assert_allclose(router.predict(strange).quality, 0.5)


def test_skill_profiles_leave_out_words_that_hardly_occur() -> None:
    from scipy.sparse import csr_matrix

    words = csr_matrix(np.eye(300, dtype=np.float32))
    router = fit(routers.SkillProfile(), LOG._replace(features=replace(LOG.features, sparse=words)))
    assert_allclose(router.profile_, 0.0)


def test_prompt_length_is_straight_between_bins_and_flat_beyond() -> None:
    length = np.arange(1, 2001, dtype=np.float32)
    features = Features(np.zeros((2000, 0), np.float32), None, length)
    quality = (length < 500).astype(np.float64)[:, None]
    router = routers.PromptLength().fit(features, quality, np.ones((2000, 1)))
    predicted = router.predict(features).quality[:, 0]
    assert predicted[50] > 0.9
    assert predicted[1500] < 0.1
    assert (np.diff(predicted) < 1e-9).all()
    long = Features(np.zeros((1, 0), np.float32), None, np.array([1e6], np.float32))
    assert_allclose(router.predict(long).quality[0, 0], predicted[-1])


@pytest.mark.parametrize(
    "router",
    [
        routers.KMeans(clusters=()),
        routers.KMeans(clusters=(0,)),
        routers.NearestNeighbours(neighbours=()),
        routers.MatrixFactorization(ranks=(0,)),
        routers.GradientBoosting(trees=0),
        routers.GradientBoosting(rate=0.0),
        routers.MultilayerPerceptron(hidden=0),
        routers.SkillProfile(rarest=0),
    ],
)
def test_keywords_without_a_meaning_are_refused(router: routers.Router) -> None:
    with pytest.raises(InputError, match="got"):
        fit(router)


def test_seeds_other_than_the_default_give_other_routers() -> None:
    queries = made(20, seed=1).features
    for kind in (routers.KMeans, routers.MultilayerPerceptron, routers.GradientBoosting):
        one, other = fit(kind(seed=0)).predict(queries), fit(kind(seed=1)).predict(queries)
        assert (one.quality != other.quality).any()
