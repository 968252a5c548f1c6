"""A forest of extremely randomised trees (Geurts, Ernst and Wehenkel 2006), shared by all models.

Each tree cuts the dense features at random places, the best of a few, where the models' qualities
differ most; a leaf then says how far each model, on the queries it was scored on there, lies from
its mean. The trees are kept as flat arrays and walked in numpy, so serving needs no scikit-learn.

Where we depart from the paper: where trees are cut, an unknown cell counts as what the other models
scored there beyond their means; what the leaves say comes from known cells alone, drawn towards the
mean by one imagined query.

Legend: N queries, U distinct ones, M models, L distinct ones, D features, T trees, J nodes of all
trees.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.router import Array, Prediction
from pointsman.pool.routers.state import check_width, costs_of, written
from pointsman.pool.routers.table import Table, tabulate
from pointsman.pool.saving import Arrays, Plain

IMAGINED = 1.0  # queries at the mean in each leaf
WALKS_AT_ONCE = 1 << 20


class Forest:
    """Extremely randomised trees on the dense features and the length.

    Args:
        trees: T.
        least: distinct queries in a leaf.
        tried: share of the features tried at each cut.
        seed: of the cuts.
    """

    name = "forest"
    title = "Randomised forest"

    def __init__(
        self, *, trees: int = 100, least: int = 10, tried: float = 0.3, seed: int = 0
    ) -> None:
        self.trees = trees
        self.least = least
        self.tried = tried
        self.seed = seed

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: fewer than one tree, fewer than one query in a leaf, or a share of features
                outside (0, 1].
        """
        if self.trees < 1 or self.least < 1 or not 0 < self.tried <= 1:
            raise InputError(
                "a forest needs 1 tree, 1 query in a leaf and a share of features in (0, 1], got "
                f"{self.trees}, {self.least} and {self.tried}"
            )
        table = tabulate(features, quality)
        self.width_ = features.dense.shape[1]
        value = self._grow(_columns(table.features), table)
        self.value_ = np.ascontiguousarray(value[:, table.model], dtype=np.float32)
        self.mean_ = table.mean[table.model]
        self.costs_ = Costs().fit(features, cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        check_width(features.dense.shape[1], self.width_)
        x_ND = _columns(features)
        quality = np.empty((len(x_ND), len(self.mean_)))
        step = max(1, WALKS_AT_ONCE // len(self.root_))
        for start in range(0, len(x_ND), step):
            leaves = self._leaves(x_ND[start : start + step])
            for row, leaf in enumerate(leaves, start):
                quality[row] = self.value_[leaf].mean(axis=0)
        return Prediction(self.mean_ + quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        keywords = {
            "trees": self.trees,
            "least": self.least,
            "tried": self.tried,
            "seed": self.seed,
        }
        learned = {
            "feature": self.feature_,
            "threshold": self.threshold_,
            "child": self.child_,
            "root": self.root_,
            "value": self.value_,
            "mean": self.mean_,
        }
        plain, arrays = written(keywords, learned, self.costs_)
        return {**plain, "width": self.width_, "depth": self.depth_}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        self = cls(**plain["keywords"])
        self.width_, self.depth_ = plain["width"], plain["depth"]
        for name in ("feature", "threshold", "child", "root", "value", "mean"):
            setattr(self, f"{name}_", np.asarray(arrays[name]))
        self.costs_ = costs_of(plain, arrays)
        return self

    def _grow(self, x_UD: npt.NDArray[np.float32], table: Table) -> Array:
        """Learn the trees; (J, L) what each node says of each model."""
        from sklearn.ensemble import ExtraTreesRegressor

        grown = ExtraTreesRegressor(
            n_estimators=self.trees,
            min_samples_leaf=min(self.least, len(x_UD)),
            max_features=self.tried,
            random_state=self.seed,
        ).fit(x_UD, _targets(table), sample_weight=table.count.max(axis=1))
        parts, roots, self.depth_, size = [], [], 0, 0
        for tree in (estimator.tree_ for estimator in grown.estimators_):
            here = np.arange(tree.node_count)
            inner = tree.children_left >= 0
            child = np.stack([tree.children_left, tree.children_right], axis=1)
            child = np.where(inner[:, None], child, here[:, None]) + size
            feature = np.where(inner, tree.feature, 0)
            value = _leaf_values(tree.apply(x_UD), tree.node_count, table)
            parts.append((feature, np.where(inner, tree.threshold, 0.0), child, value))
            roots.append(size)
            self.depth_ = max(self.depth_, int(tree.max_depth))
            size += tree.node_count
        feature, threshold, child, value = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        self.feature_, self.threshold_ = feature.astype(np.int32), threshold
        self.child_ = child.astype(np.int32).reshape(-1)
        self.root_ = np.array(roots, dtype=np.int32)
        return value

    def _leaves(self, x_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """(N, T) where each query ends in each tree; a leaf leads to itself."""
        at = np.broadcast_to(self.root_, (len(x_ND), len(self.root_)))
        row = np.arange(len(x_ND))[:, None]
        for _ in range(self.depth_):
            right = x_ND[row, self.feature_[at]] > self.threshold_[at]
            at = self.child_[2 * at + right]
        return at


def _columns(features: Features) -> npt.NDArray[np.float32]:
    length = np.log1p(np.maximum(features.length, 0.0))[:, None]
    return np.ascontiguousarray(np.concatenate([features.dense, length], axis=1), dtype=np.float32)


def _targets(table: Table) -> Array:
    """(U, L) deviations, where unknown those of the other models on the query; (U,) if L is 1."""
    known = table.count > 0
    level = table.deviation.sum(axis=1, keepdims=True) / known.sum(axis=1, keepdims=True)
    targets: Array = np.where(known, table.deviation, level)
    return targets if targets.shape[1] > 1 else targets[:, 0]


def _leaf_values(leaf: npt.NDArray[np.int64], nodes: int, table: Table) -> Array:
    """(nodes, L) mean deviation of the queries in each leaf."""
    values = np.zeros((nodes, table.count.shape[1]))
    for at in range(values.shape[1]):
        count, deviation = table.count[:, at], table.deviation[:, at]
        total = np.bincount(leaf, count * deviation, minlength=nodes)
        values[:, at] = total / (np.bincount(leaf, count, minlength=nodes) + IMAGINED)
    return values
