"""Many small regression trees as flat arrays: walked in numpy, kept without code.

Legend: N queries, D features, T trees, J nodes of all trees, M models.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.routers.table import Array
from pointsman.pool.saving import Arrays, Plain

_STEPS_AT_ONCE = 1 << 20


class Trees:
    """Sums of trees, several sums at once.

    A node sends a query to `left` where its feature is at most `threshold`, else to `right`; a leaf
    sends it to itself.

    Args:
        feature: (J,)
        threshold: (J,)
        left: (J,) nodes.
        right: (J,) nodes.
        value: (J,) what a leaf adds.
        root: (T,) nodes, tree by tree, model by model.
        start: (M,) the first tree of each model; every model has one or more.
        depth: the most steps from a root to a leaf.
    """

    def __init__(
        self,
        feature: npt.NDArray[np.int32],
        threshold: Array,
        left: npt.NDArray[np.int32],
        right: npt.NDArray[np.int32],
        value: Array,
        root: npt.NDArray[np.int32],
        start: npt.NDArray[np.int32],
        depth: int,
    ) -> None:
        self.feature, self.threshold = feature, threshold
        self.left, self.right, self.value = left, right, value
        self.root, self.start, self.depth = root, start, depth

    def predict(self, x_ND: Array) -> Array:
        """(N, M) sums, each over the trees in their order."""
        result = np.empty((len(x_ND), len(self.start)))
        step = max(1, _STEPS_AT_ONCE // len(self.root))
        for begin in range(0, len(x_ND), step):
            rows = x_ND[begin : begin + step]
            at = np.broadcast_to(self.root, (len(rows), len(self.root)))
            query = np.arange(len(rows))[:, None]
            for _ in range(self.depth):
                low = rows[query, self.feature[at]] <= self.threshold[at]
                at = np.where(low, self.left[at], self.right[at])
            result[begin : begin + step] = np.add.reduceat(self.value[at], self.start, axis=1)
        return result

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        return {"depth": self.depth}, {
            "feature": self.feature,
            "threshold": self.threshold,
            "left": self.left,
            "right": self.right,
            "value": self.value,
            "root": self.root,
            "start": self.start,
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it."""
        return cls(depth=plain["depth"], **{name: np.asarray(a) for name, a in arrays.items()})


def planted(forests: list[list[Any]], share: list[float]) -> Trees:
    """Trees of scikit-learn's histogram boosting, laid flat.

    Args:
        forests: for each model its trees, as arrays of nodes (`TreePredictor.nodes`).
        share: for each model, what each of its leaves is multiplied by.
    """
    nodes: list[tuple[Any, ...]] = []
    roots: list[int] = []
    starts: list[int] = []
    depth, size = 1, 0
    for trees, part in zip(forests, share, strict=True):
        starts.append(len(roots))
        for tree in trees or [_leaf()]:
            flat = _flat(tree, size, part)
            nodes.append(flat)
            roots.append(size)
            depth = max(depth, int(tree["depth"].max()))
            size += len(tree)
    feature, threshold, left, right, value = (
        np.concatenate(column) for column in zip(*nodes, strict=True)
    )
    return Trees(
        feature.astype(np.int32),
        threshold,
        left.astype(np.int32),
        right.astype(np.int32),
        value,
        np.array(roots, dtype=np.int32),
        np.array(starts, dtype=np.int32),
        depth,
    )


def _flat(tree: Any, offset: int, share: float) -> tuple[Any, ...]:
    leaf = tree["is_leaf"].astype(bool)
    here = np.arange(len(tree)) + offset
    return (
        np.where(leaf, 0, tree["feature_idx"]),
        np.where(leaf, 0.0, tree["num_threshold"]),
        np.where(leaf, here, tree["left"].astype(np.int64) + offset),
        np.where(leaf, here, tree["right"].astype(np.int64) + offset),
        np.where(leaf, tree["value"] * share, 0.0),
    )


def _leaf() -> Any:
    names = ("feature_idx", "num_threshold", "left", "right", "value", "is_leaf", "depth")
    tree = np.zeros(1, dtype=[(name, np.float64) for name in names])
    tree["is_leaf"] = 1
    return tree
