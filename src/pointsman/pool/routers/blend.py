"""Several routers as one: what each says counts as much as it proved worth on queries held out.

Stacked generalisation (Wolpert 1992) with weights that are not negative (Breiman 1996): each router
predicts every query from a fit without it; the weights are those of least squares on these
predictions; then all routers are fitted again on everything.

What matters to routing is how the models differ on a query, so the differences have weights of
their own, beside those of the level that all models share:

    quality = mean of the model + Σ w (difference) + Σ v (level)

Where nothing can be learned, the weights are near zero and every query gets the means.

Legend: N queries, M models, R routers.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features.features import Features
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.forest import Forest
from pointsman.pool.routers.gradient_boosting import GradientBoosting
from pointsman.pool.routers.linear import Linear
from pointsman.pool.routers.out_of_fold import out_of_fold, parts_by_content
from pointsman.pool.routers.router import Array, Prediction, Router
from pointsman.pool.routers.state import costs_of, written
from pointsman.pool.routers.table import tabulate
from pointsman.pool.saving import Arrays, Plain, inside, nested


class Blend:
    """A weighted sum of routers, and of one that sees what they say beside the features.

    Args:
        routers: each is copied before it is fitted.
        then: a router fitted on the dense features with the others' held-out predictions beside
            them, and blended with them; None: none.
        parts: that the training queries are held out in, one after the other.
    """

    name = "blend"
    title = "Blend of routers"

    def __init__(
        self,
        routers: Sequence[Any] = (Linear(), GradientBoosting(), GradientBoosting(seed=1)),
        *,
        then: Any = Forest(),  # noqa: B008  (copied, never changed)
        parts: int = 4,
    ) -> None:
        self.routers = tuple(routers)
        self.then = then
        self.parts = parts

    def fit(self, features: Features, quality: Array, cost: Array) -> Self:
        """As `pointsman.pool.routers.router.Router` has it.

        Raises:
            InputError: no router, fewer than two parts, or a model scored too seldom to hold
                queries out.
        """
        routers = self.routers
        if not routers or self.parts < 2:
            raise InputError(
                f"a blend needs one router and two parts or more, got {len(routers)} and "
                f"{self.parts}"
            )
        tabulate(features, quality)  # refuses what nothing can be learned from
        self.costs_ = Costs().fit(features, cost)
        part = parts_by_content(features, self.parts)
        held_out = [out_of_fold(router, features, quality, cost, part) for router in routers]
        self.mean_ = np.nanmean(quality, axis=0)
        self.routers_: list[Router] = [
            copy.deepcopy(router).fit(features, quality, cost) for router in routers
        ]
        self.then_: Router | None = None
        self.order_ = np.arange(quality.shape[1])
        if self.then is not None:
            # trees cut columns at random, so these need an order that is not that of the models
            first = held_out[0]
            self.order_ = np.lexsort((first.var(axis=0), first.mean(axis=0), self.mean_))
            beside = self._beside(features, held_out)
            held_out.append(out_of_fold(self.then, beside, quality, cost, part))
            self.then_ = copy.deepcopy(self.then).fit(beside, quality, cost)
        self._weigh(held_out, quality)
        return self

    def predict(self, features: Features) -> Prediction:
        """As `pointsman.pool.routers.router.Router` has it."""
        said = [router.predict(features).quality for router in self.routers_]
        if self.then_ is not None:
            said.append(self.then_.predict(self._beside(features, said)).quality)
        quality = np.tile(self.mean_, (len(features), 1))
        for each, mean, w, v in zip(
            said, self.means_, self.weights_, self.level_weights_, strict=True
        ):
            beyond = each - mean
            level = beyond.mean(axis=1, keepdims=True)
            quality += w * (beyond - level) + v * level
        return Prediction(quality, self.costs_.predict(features))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """As `pointsman.pool.saving.Saved` has it."""
        fitted: list[Any] = [*self.routers_, *([] if self.then_ is None else [self.then_])]
        plain, arrays = nested({str(at): router.to_state() for at, router in enumerate(fitted)})
        learned = {
            "mean": self.mean_,
            "order": self.order_,
            "means": self.means_,
            "weights": self.weights_,
            "level_weights": self.level_weights_,
            **arrays,
        }
        kept, learned = written({"parts": self.parts}, learned, self.costs_)
        classes = [type(router).__name__ for router in fitted]
        return {
            **kept,
            "classes": classes,
            "then": self.then_ is not None,
            "states": plain,
        }, learned

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """As `pointsman.pool.saving.Saved` has it.

        Raises:
            PolicyError: it holds a router that this version does not have.
        """
        fitted = [
            _class(name).from_state(plain["states"][str(at)], inside(str(at), arrays))
            for at, name in enumerate(plain["classes"])
        ]
        self = cls(**plain["keywords"])
        self.then_ = fitted.pop() if plain["then"] else None
        self.routers_ = fitted
        for name in ("mean", "order", "means", "weights", "level_weights"):
            setattr(self, f"{name}_", np.asarray(arrays[name]))
        self.costs_ = costs_of(plain, arrays)
        return self

    def _beside(self, features: Features, said: Sequence[Array]) -> Features:
        """Features with predictions as further dense ones."""
        columns = np.concatenate([each[:, self.order_] for each in said], axis=1)
        dense = np.concatenate([features.dense, columns.astype(np.float32)], axis=1)
        return replace(features, dense=dense)

    def _weigh(self, held_out: Sequence[Array], quality: Array) -> None:
        """Learn how much each router counts, from what it says of queries held out."""
        from scipy.optimize import nnls

        known = ~np.isnan(quality)
        self.means_ = np.stack([np.where(known, each, np.nan) for each in held_out])
        self.means_ = np.nanmean(self.means_, axis=1)
        beyond = [each - mean for each, mean in zip(held_out, self.means_, strict=True)]
        parts = [_level_and_differences(each, known) for each in beyond]
        level, differences = _level_and_differences(np.where(known, quality, 0) - self.mean_, known)
        self.level_weights_ = nnls(*_normal(np.stack([part[0] for part in parts]), level))[0]
        self.weights_ = nnls(*_normal(np.stack([part[1] for part in parts]), differences))[0]


def _level_and_differences(cells: Array, known: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """(N,) mean of the known cells of each query, and (N * M,) what they differ from it by."""
    times = known.sum(axis=1)
    level = np.where(known, cells, 0.0).sum(axis=1) / np.maximum(times, 1)
    return level, np.where(known, cells - level[:, None], 0.0).reshape(-1)


def _normal(said: Array, truth: Array) -> tuple[Array, Array]:
    """A small problem of least squares with the solution of (R, K) against (K,)."""
    values, vectors = np.linalg.eigh(said @ said.T)
    roots = np.sqrt(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))
    factor = roots[:, None] * vectors.T
    return factor, (vectors / roots).T @ (said @ truth)


def _class(name: str) -> Any:
    from pointsman.pool import routers as home

    kind = getattr(home, name, None) if name in home.__all__ else None
    if kind is None or not hasattr(kind, "from_state"):
        raise PolicyError(
            f"there is no router {name!r}: the policy was made by another version, fit it again"
        )
    return kind
