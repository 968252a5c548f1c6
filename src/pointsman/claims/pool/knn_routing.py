"""kNN routing: what the nearest known queries say, against routers that learn weights.

"Rethinking Predictive Modeling for LLM Routing: When Simple kNN Beats Complex Learned Routers"
(2025, arXiv 2505.12601).

Quality and cost of every model on a new query are the means over its nearest training queries by
cosine, and the query goes to the model with the greatest quality - price * cost. Where queries that
lie near one another have like utilities, this needs fewer samples than a router whose family of
functions must cover the same map. The composition is `pool.routers.NearestNeighbours`, which tunes
the number of neighbours on left-out queries, and the choice by utility.

What was settled:
- The world is one with locality: 15 clusters on 16 dimensions, four models whose chance to be right
  depends on the cluster, at mean costs of 0.05, 0.2, 0.5 and 1. Utility is taken with the true
  chances and costs, averaged over prices 0, 0.1, 0.2 and 0.4, so that no luck of the test is in it.
- All routers are the package's own with their defaults: logistic regressions, three-member
  perceptrons, matrix factorisation, gradient boosting, k-means (which should do well here), and the
  same for each query (no features). Learned routers are as good as they are made for users, which
  is harder on kNN than untuned baselines would be.
- Beside the criterion: the same with queries that have no clusters, where chances are a logistic
  function of one direction; there the linear router is the right family.
- Beside the criterion, too: with the folder of `routellm_mmlu.csv.gz` in the environment variable
  POINTSMAN_DATA, the average gap recovered (APGR) on MMLU, with reduced TF-IDF of the query as
  features. The paper has pretrained encoders, so this is not like for like.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

    from pointsman.pool.features import Features
    from pointsman.pool.routers import Router

CLUSTERS, WIDTH, TEST = 15, 16, 3000
COSTS, PRICES, SIZES = (0.05, 0.2, 0.5, 1.0), (0.0, 0.1, 0.2, 0.4), (150, 600)
KNN, LEARNED = "kNN", ("logistic", "perceptron", "factorisation", "boosting")
DATA, FILE = "POINTSMAN_DATA", "routellm_mmlu.csv.gz"
MMLU_MODELS, MMLU_TRAIN = ("mixtral-8x7b", "gpt-4-1106"), 6000


def quick() -> None:
    """Order of rows is moot; equal queries fare alike; who lies near counts; NaN is left out."""
    import numpy as np

    from pointsman.pool.routers import NearestNeighbours

    world = _World(0, local=True)
    features, quality, cost = world.draw(300, 1)[:3]
    fitted = NearestNeighbours().fit(features, quality, cost)
    new = world.draw(50, 2)[0]
    found = fitted.predict(new).quality
    order = np.random.default_rng(0).permutation(300)
    other = NearestNeighbours().fit(features.take(order), quality[order], cost[order])
    must(bool(np.allclose(other.predict(new).quality, found)), "the order of rows does not matter")
    twice = new.take(np.repeat(np.arange(50), 2))
    pairs = fitted.predict(twice).quality
    must(bool((pairs[::2] == pairs[1::2]).all()), "equal queries get equal predictions")
    low, high = quality.min(axis=0) - 1e-9, quality.max(axis=0) + 1e-9
    must(bool(((found >= low) & (found <= high)).all()), "means stay within what was seen")
    cluster = world.draw(300, 1)[3]
    one = features.take(np.flatnonzero(cluster == 0))
    alone = NearestNeighbours(neighbours=(1,)).fit(features, (cluster == 0)[:, None] * 1.0, cost)
    must(bool((alone.predict(one).quality > 0.5).all()), "a neighbour of its own kind is nearest")
    unknown = np.where(np.arange(300)[:, None] % 2 == 0, quality, np.nan)
    sparse = NearestNeighbours().fit(features, unknown, cost).predict(new).quality
    must(bool(np.isfinite(sparse).all()), "missing cells are left out")


class _World:
    """Queries as points, and what four models would do on them."""

    def __init__(self, seed: int, *, local: bool) -> None:
        import numpy as np

        rng = np.random.default_rng(seed)
        self.local = local
        self.centres = rng.normal(size=(CLUSTERS, WIDTH))
        self.chance = rng.uniform(0.1, 0.6, size=(CLUSTERS, 4)) + np.array([0, 0.1, 0.2, 0.3])
        self.direction = rng.normal(size=(WIDTH, 4)) / np.sqrt(WIDTH)

    def draw(self, count: int, seed: int) -> tuple["Features", Any, Any, Any, Any]:
        """Features, drawn quality and cost (count, 4), clusters (count,), true quality."""
        import numpy as np

        from pointsman.pool.features import Features

        rng = np.random.default_rng(seed)
        cluster = rng.integers(CLUSTERS, size=count)
        if self.local:
            x = self.centres[cluster] + 0.5 * rng.normal(size=(count, WIDTH))
            chance = self.chance[cluster]
        else:
            x = rng.normal(size=(count, WIDTH))
            chance = 1 / (1 + np.exp(-2 * x @ self.direction - np.array([-0.5, 0, 0.5, 1])))
        quality = (rng.random((count, 4)) < chance).astype(float)
        cost = np.array(COSTS) * rng.lognormal(-0.02, 0.2, size=(count, 4))
        features = Features(x.astype(np.float32), None, np.full(count, 100, dtype=np.float32))
        return features, quality, cost, cluster, chance


def _routers(seed: int) -> dict[str, "Router"]:
    from pointsman.pool.routers import (
        Constant,
        GradientBoosting,
        KMeans,
        Linear,
        MatrixFactorization,
        MultilayerPerceptron,
        NearestNeighbours,
    )

    return {
        KNN: NearestNeighbours(seed=seed),
        "logistic": Linear(),
        "perceptron": MultilayerPerceptron(seed=seed),
        "factorisation": MatrixFactorization(seed=seed),
        "boosting": GradientBoosting(seed=seed),
        "k-means": KMeans(seed=seed),
        "same for all": Constant(),
    }


def full(seed: int) -> Figures:
    """Mean utility of each router with few and with more queries; beside it the other worlds."""
    found: dict[str, float] = {}
    for local, where in ((True, ""), (False, "no clusters, ")):
        world = _World(seed, local=local)
        features, _, _, _, truth = world.draw(TEST, 1000 + seed)
        for size in SIZES:
            train = world.draw(size, 2000 + seed)[:3]
            for name, router in _routers(seed).items():
                chosen = router.fit(*train).predict(features)
                row = f"{where}{name}: utility, n = {size}"
                found[row] = _utility(truth, chosen.quality, chosen.cost)
            best = f"{where}best possible: utility, n = {size}"
            found[best] = _utility(truth, truth, _true_cost(truth))
    return {**found, **_on_mmlu(seed)}


def _true_cost(truth: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    import numpy as np

    return np.tile(COSTS, (len(truth), 1))


def _utility(truth: Any, quality: Any, cost: Any) -> float:
    """True utility of the models with the greatest expected one, averaged over the prices."""
    import numpy as np

    rows, spent = np.arange(len(truth)), np.array(COSTS)
    total = 0.0
    for price in PRICES:
        model = (quality - price * cost).argmax(axis=1)
        total += float((truth[rows, model] - price * spent[model]).mean())
    return total / len(PRICES)


def _on_mmlu(seed: int) -> dict[str, float]:
    """Average gap recovered on the log of RouteLLM, if it is there."""
    import os
    from dataclasses import replace
    from pathlib import Path

    import numpy as np
    import pandas as pd

    from pointsman.frontier import apgr, deferral_curve
    from pointsman.pool.features import TextEncoder
    from pointsman.pool.log import Log

    file = Path(os.environ.get(DATA) or "") / FILE
    if not file.is_file():
        return {}
    table = pd.read_csv(file).drop_duplicates("query")
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    quality = table[list(MMLU_MODELS)].to_numpy(dtype=float)
    log = Log(table["query"].to_numpy(dtype=object), MMLU_MODELS, quality, np.ones(quality.shape))
    known = np.arange(len(log)) < MMLU_TRAIN
    train, test = log.take(known), log.take(~known)
    encoder = TextEncoder(components=100).fit(train)
    # Reduced features alone, so that every router sees the same.
    seen, new = (replace(encoder.transform(part), sparse=None) for part in (train, test))
    weak, strong = test.quality.T
    found = {}
    for name in (KNN, "logistic", "same for all"):
        router = _routers(seed)[name].fit(seen, train.quality, train.cost)
        expected = router.predict(new).quality
        curve = deferral_curve(expected[:, 1] - expected[:, 0], weak, strong)
        found[f"MMLU, {name}: APGR"] = apgr(*curve, weak=weak.mean(), strong=strong.mean())
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    return all(
        mean(measurements, f"{KNN}: utility, n = {size}")
        >= max(mean(measurements, f"{name}: utility, n = {size}") for name in LEARNED)
        for size in SIZES
    )


CLAIM = Claim(
    slug="knn-routing",
    paper="Rethinking Predictive Modeling for LLM Routing: When Simple kNN Beats Complex Learned "
    "Routers",
    year=2025,
    arxiv="2505.12601",
    level="pool",
    claim="Where models do alike on queries that lie near one another, the mean over the nearest "
    "known queries routes at least as well as learned routers, also with few samples.",
    baseline="The package's logistic, perceptron, factorisation and boosting routers on the same "
    "features and rows; k-means and one model for all beside them.",
    criterion="On clustered queries with 150 and with 600 training queries, in the mean over "
    "seeds: the utility of kNN, averaged over prices 0, 0.1, 0.2 and 0.4, is at least that of each "
    "of logistic, perceptron, factorisation and boosting routers.",
    quick=quick,
    full=full,
    decide=decide,
    composition="cosine neighbours, their number tuned on left-out queries · mean quality and cost "
    "· greatest utility",
    entry="pointsman.pool.routers.NearestNeighbours",
    key={
        "utility, kNN, n = 150": f"{KNN}: utility, n = 150",
        "logistic": "logistic: utility, n = 150",
        "kNN, n = 600": f"{KNN}: utility, n = 600",
        "perceptron, n = 600": "perceptron: utility, n = 600",
    },
    note="k-means does as well where there are clusters. Where there are none and chances follow "
    "one direction, the logistic router is clearly better; on MMLU both are about equal.",
)
