"""Gradient boosting: many small trees for each model, by scikit-learn's histograms.

One HistGradientBoostingRegressor a model (after LightGBM, Ke et al., NeurIPS 2017), fitted on the
queries the model was scored on. Every model keeps as many trees; how many, held-out queries decide
for all models together, because for each alone that choice would follow noise. What was grown is
laid flat as arrays (`trees`): that is faster for one query than the estimator, needs no
scikit-learn where a policy is served, and keeps nothing in the policy that could run code.

Legend: N queries, M models, L distinct ones.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.design import Design
from pointsman.pool.routers.router import Prediction
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import Array, Table, folds, tabulate
from pointsman.pool.routers.trees import Trees, planted
from pointsman.pool.saving import Arrays, Plain, inside, nested

LEAST_QUERIES = 50  # of a model; it is given its mean below
HELD_OUT = 7  # one part in so many decides on the number of trees


class GradientBoosting:
    """Boosted trees on the dense features and the length.

    Args:
        trees: at most, for each model.
        rate: what each tree adds of what it found.
        leaves: of each tree, at most.
        seed: of the features tried at each split, and of the part held out.
    """

    name = "gradient-boosting"
    title = "Gradient boosting"

    def __init__(
        self, *, trees: int = 150, rate: float = 0.06, leaves: int = 12, seed: int = 0
    ) -> None:
        self.trees = trees
        self.rate = rate
        self.leaves = leaves
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: fewer than one tree or two leaves, or a rate that is not positive.
        """
        if self.trees < 1 or self.leaves < 2 or not self.rate > 0:
            raise InputError(
                f"boosting needs 1 tree, 2 leaves and a positive rate or more, got {self.trees}, "
                f"{self.leaves} and {self.rate}"
            )
        table = tabulate(features, quality)
        self.design_ = Design().fit(table.features)
        x = self.design_.transform(table.features)
        grown = self._grow(x, table)
        each, share = list(table.model), table.trust()
        self.trees_ = planted([grown[at] for at in each], [float(share[at]) for at in each])
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        quality = self.mean_ + self.trees_.predict(self.design_.transform(features))
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        parts = {"design": self.design_.to_state(), "trees": self.trees_.to_state()}
        plain, arrays = nested(parts)
        keywords = {
            "trees": self.trees,
            "rate": self.rate,
            "leaves": self.leaves,
            "seed": self.seed,
        }
        kept, learned = written(keywords, {"mean": self.mean_, **arrays}, self.costs_)
        return {**kept, **plain}, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.design_ = Design.from_state(plain["design"], inside("design", arrays))
        self.trees_ = Trees.from_state(plain["trees"], inside("trees", arrays))
        self.mean_ = np.asarray(arrays["mean"])
        self.costs_ = costs_of(plain, arrays)
        return self

    def _grow(self, x: Array, table: Table) -> list[list[Any]]:
        """The nodes of each tree of each distinct model."""
        held = folds(len(x), HELD_OUT, self.seed) == 0
        error = np.zeros(self.trees + 1)
        grown: list[list[Any]] = []
        for count, deviation in zip(table.count.T, table.deviation.T, strict=True):
            rest, out = np.flatnonzero((count > 0) & ~held), np.flatnonzero((count > 0) & held)
            if len(rest) < LEAST_QUERIES or not np.ptp(deviation[rest]) > 0:
                grown.append([])
                continue
            # Repeated rather than weighed: scikit-learn bins weighted rows in slow ways.
            often = np.repeat(rest, count[rest].astype(np.int64))
            trees = self._boost(x[often], deviation[often])
            grown.append(trees)
            steps = planted([[tree] for tree in trees], [1.0] * len(trees)).predict(x[out])
            sums = np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)
            error += (count[out, None] * (deviation[out, None] - sums) ** 2).sum(axis=0)
        return [trees[: int(error.argmin())] for trees in grown]

    def _boost(self, x: Array, y: Array) -> list[Any]:
        """The nodes of each tree."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        booster = HistGradientBoostingRegressor(
            learning_rate=self.rate,
            max_iter=self.trees,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=20,
            l2_regularization=5.0,
            max_features=0.3,
            max_bins=63,
            early_stopping=False,
            random_state=self.seed,
        ).fit(x, y)
        # scikit-learn has no public way to read these trees; the next lines make sure of them.
        trees = [predictors[0].nodes for predictors in booster._predictors]
        some = x[:32]
        offset = booster.predict(some) - planted([trees], [1.0]).predict(some)[:, 0]
        if not np.ptp(offset) < 1e-9:
            raise RuntimeError("this version of scikit-learn keeps its trees in another way")
        return trees
