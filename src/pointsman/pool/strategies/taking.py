"""What the strategies share: from whom was asked to a route, best options, thinning, constants.

Legend: N queries, M models, K most models asked for one query, S settings.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain
from pointsman.pool.strategies.strategy import Setting, Taken

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]
MOST_SETTINGS = 60


class Constants:
    """The same prediction for every query: each model's means over the training part.

    What a strategy that looks at no query says when asked what it expects.
    """

    def fit(self, log: Log) -> Self:
        """Means of the known cells; a model without a known cost is taken for the dearest."""
        cost = log.mean_cost()
        known = np.isfinite(cost)
        self.cost_ = np.where(known, cost, cost[known].max() if known.any() else 0.0)
        self.quality_ = log.mean_quality()
        return self

    def predict(self, features: Features) -> Prediction:
        """(N, M) each."""
        rows = (len(features), 1)
        return Prediction(np.tile(self.quality_, rows), np.tile(self.cost_, rows))

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The means."""
        return {}, {"quality": self.quality_, "cost": self.cost_}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same means again."""
        part = cls()
        part.quality_, part.cost_ = np.asarray(arrays["quality"]), np.asarray(arrays["cost"])
        return part


def taken(asked: Columns, answered: Columns, judged: npt.NDArray[np.bool_], models: int) -> Taken:
    """What was done, as a route.

    Args:
        asked: (N, K) columns in the order of asking, -1 where no further model was.
        answered: (N,) column whose answer was given, one of those asked.
        judged: (N, M) answers whose signal was obtained.
        models: M.
    """
    import torch  # a server takes single steps only, and does without

    from pointsman.route import Route

    slots = torch.from_numpy(np.ascontiguousarray(asked, dtype=np.int64))
    weights = (slots == torch.from_numpy(np.asarray(answered, dtype=np.int64))[:, None]).float()
    return Taken(Route.from_indices(slots, weights, num_branches=models), judged)


def taken_at_once(column: Columns, models: int) -> Taken:
    """What was done where each query asked one model only, and judged nothing."""
    nothing = np.zeros((len(column), models), dtype=bool)
    return taken(np.asarray(column)[:, None], column, nothing, models)


def best_option(value: Array, cost: Array) -> Columns:
    """(N,) column of the largest value; of equal ones the cheapest, of those the first.

    Args:
        value: (N, M), -inf for what cannot be chosen.
        cost: (N, M) expected.
    """
    best = value == value.max(axis=1, keepdims=True)
    column: Columns = np.where(best, cost, np.inf).argmin(axis=1)
    # a best option of infinite cost must not lose to one that is not best
    stays = best[np.arange(len(best)), column]
    return np.where(stays, column, best.argmax(axis=1))


def thinned(place: npt.ArrayLike, most: int) -> list[int]:
    """At most `most` of S indices, spread evenly over where they lie, both ends included.

    Args:
        place: (S,) of each, such as its mean cost; ascending or descending.
        most: 2 or more.
    """
    places = np.asarray(place, dtype=np.float64)
    if len(places) <= most:
        return list(range(len(places)))
    # half by place and half by rank, so that neither a jump nor a crowd takes them all
    span = np.abs(places - places[0]) / max(abs(places[-1] - places[0]), 1e-300)
    where = np.maximum.accumulate(span) + np.linspace(0, 1, len(places))
    wanted = np.linspace(0, where[-1], most)
    nearest = np.searchsorted((where[1:] + where[:-1]) / 2, wanted)
    return [int(at) for at in np.unique(nearest)]


def named(knobs: Sequence[str], parameters: Sequence[dict[str, Any]]) -> tuple[Setting, ...]:
    """Settings with these knobs; equal knobs get a number, since knobs must differ."""
    seen: dict[str, int] = {}
    settings = []
    for knob, values in zip(knobs, parameters, strict=True):
        seen[knob] = seen.get(knob, 0) + 1
        settings.append(Setting(knob if seen[knob] == 1 else f"{knob} #{seen[knob]}", values))
    return tuple(settings)


def parameter(setting: Setting, name: str, strategy: str) -> Any:
    """A parameter of a setting.

    Raises:
        InputError: the setting has none of that name, so it belongs to another strategy.
    """
    if name not in setting.parameters:
        raise InputError(
            f"the setting {setting.knob!r} has no {name!r}: it is not one of {strategy}'s"
        )
    return setting.parameters[name]
