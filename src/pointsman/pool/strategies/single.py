"""Each model alone: what every way of routing has to beat. Legend: N queries, M models."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain
from pointsman.pool.strategies.strategy import Setting, Step, Taken
from pointsman.pool.strategies.taking import Constants, parameter, taken_at_once


class Single:
    """One model answers everything; the settings are the models, the dearest first.

    The hull of its points is the "zero router" of RouterBench (Hu et al. 2024, arXiv 2403.12031).
    """

    name = "single"
    title = "One model alone"
    signal: str | None = None

    def fit(self, log: Log, features: Features) -> Self:
        """Mean quality and cost of every model."""
        self.models_ = log.models
        self.constants_ = Constants().fit(log)
        return self

    def predict(self, features: Features) -> Prediction:
        """The same means for every query."""
        return self.constants_.predict(features)

    def settings(self, log: Log, prediction: Prediction) -> tuple[Setting, ...]:
        """One for each model, by falling mean cost on this log."""
        cost = log.mean_cost()
        order = sorted(range(len(log.models)), key=lambda m: (-cost[m], m))
        return tuple(Setting(log.models[m], {"model": m}) for m in order)

    def take(self, log: Log, prediction: Prediction, setting: Setting) -> Taken:
        """The setting's model, for every query."""
        column = np.full(len(log), int(parameter(setting, "model", self.name)))
        return taken_at_once(column, len(log.models))

    def step(
        self,
        prediction: Prediction,
        setting: Setting,
        asked: Sequence[tuple[int, float | None]] = (),
    ) -> Step:
        """Ask the setting's model; then give its answer."""
        m = int(parameter(setting, "model", self.name))
        quality, cost = float(prediction.quality[0, m]), float(prediction.cost[0, m])
        first = m not in (model for model, _ in asked)
        return Step(m, first, first, quality, cost, "this model alone")

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The means."""
        _, arrays = self.constants_.to_state()
        return {"models": list(self.models_)}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same strategy again."""
        strategy = cls()
        strategy.models_ = tuple(plain["models"])
        strategy.constants_ = Constants.from_state({}, arrays)
        return strategy
