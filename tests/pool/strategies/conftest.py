"""Logs and predictions made up for the battery: signals missing, ties everywhere."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest

from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction


class Told:
    """A router that reads its predictions off the features: they hold them, (N, 2 M)."""

    name, title = "told", "Told"

    def fit(self, features: Features, quality: Any, cost: Any) -> Self:
        return self

    def predict(self, features: Features) -> Prediction:
        half = features.dense.shape[1] // 2
        dense = features.dense.astype(np.float64)
        return Prediction(dense[:, :half], dense[:, half:])


Made = tuple[Log, Features]


@pytest.fixture(scope="session")
def make_log() -> Callable[..., Made]:
    """A log in which a signal knows something, and features that hold predictions."""

    def make(
        n: int, models: int, seed: int = 0, *, ties: bool = False, missing: float = 0.15
    ) -> Made:
        rng = np.random.default_rng(seed)
        hard = rng.normal(size=(n, 1))
        strength = np.linspace(-0.3, 1.2, models)
        chance = 1 / (1 + np.exp(hard - strength - 0.5 * rng.normal(size=(n, models))))
        right = (rng.random((n, models)) < chance).astype(float)
        cost = np.geomspace(1, 20, models) * rng.uniform(0.7, 1.4, size=(n, models))
        signal = right + rng.normal(size=(n, models)) * 0.7
        told = np.clip(chance + 0.1 * rng.normal(size=(n, models)), 0, 1)
        price = np.geomspace(1, 20, models) * np.ones((n, models))
        if ties:
            signal, told = np.round(signal), np.round(told * 3) / 3
            cost, price = np.ceil(cost / 5), np.ceil(price / 5)
        signal[rng.random((n, models)) < missing] = np.nan
        log = Log(
            queries=np.array([f"query {at} of {seed}" for at in range(n)], dtype=object),
            models=tuple(f"m{at}" for at in range(models)),
            quality=right,
            cost=cost,
            signals={"sure": signal, "judge": signal + 0.3 * rng.normal(size=(n, models))},
            signal_cost={"judge": np.full((n, models), 0.5)},
        )
        dense = np.concatenate([told, price], axis=1).astype(np.float32)
        return log, Features(dense, None, np.full(n, 10.0, dtype=np.float32))

    return make


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def replayed() -> Callable[..., tuple[list[int], list[int], int]]:
    """Asked, judged and answering models of one query, taken step by step."""

    def replay(
        strategy: Any, log: Log, prediction: Prediction, setting: Any, row: int
    ) -> tuple[list[int], list[int], int]:
        one = Prediction(prediction.quality[[row]], prediction.cost[[row]])
        cells = None if strategy.signal is None else log.signals[strategy.signal]
        asked: list[tuple[int, float | None]] = []
        judged: list[int] = []
        for _ in range(len(log.models) + 1):
            step = strategy.step(one, setting, asked)
            assert np.isfinite([step.quality, step.cost]).all()
            assert step.why
            assert "\n" not in step.why
            if not step.ask:
                return [m for m, _ in asked], judged, step.model
            if step.final:
                return [*(m for m, _ in asked), step.model], judged, step.model
            judged.append(step.model)
            assert cells is not None, "an answer is judged though no signal is read"
            value = float(cells[row, step.model])
            asked.append((step.model, None if np.isnan(value) else value))
        raise AssertionError("a strategy asked more models than there are")

    return replay
