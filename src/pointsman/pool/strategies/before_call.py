"""Routing before the call: the model of best predicted value answers. Legend: N queries, M models.

The value of a model is its predicted quality less a price times its predicted cost, the choice that
Dekoninck et al. 2024 (arXiv 2410.10347, section 2) show to be optimal under a budget, where the
predictions are right. The price is the one knob.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy.typing as npt

from pointsman.pool import routers
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain, inside, nested
from pointsman.pool.strategies.keeping import part_back, part_state
from pointsman.pool.strategies.prices import chosen_at, prices
from pointsman.pool.strategies.strategy import Setting, Step, Taken
from pointsman.pool.strategies.taking import named, parameter, taken_at_once


class BeforeCall:
    """Each query asks one model: the one of largest predicted quality - price * predicted cost.

    Of equal values the cheaper model is asked, of equal costs the first. The prices lie between
    those at which a query of the validation part changes its model, thinned. Negative ones are
    among them: they pay for being careful, up to the dearest model for everything.

    Args:
        router: predicts; it is copied before it is fitted.

    Attributes:
        router_: fitted.
    """

    signal: str | None = None

    def __init__(self, router: Any) -> None:
        self.router = router
        self.name = str(router.name)
        self.title = str(router.title)

    def fit(self, log: Log, features: Features) -> Self:
        """Fit the router."""
        self.router_ = copy.deepcopy(self.router).fit(features, log.quality, log.cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """The router's prediction."""
        found: Prediction = self.router_.predict(features)
        return found

    def settings(self, log: Log, prediction: Prediction) -> tuple[Setting, ...]:
        """Prices from the one that sends all to the dearest model to the cheapest."""
        grid = prices(prediction)
        return named([f"price {price:.6g}" for price in grid], [{"price": p} for p in grid])

    def take(self, log: Log, prediction: Prediction, setting: Setting) -> Taken:
        """The best model of every query at the setting's price."""
        column = chosen_at(prediction, float(parameter(setting, "price", self.name)))
        return taken_at_once(column, len(log.models))

    def step(
        self,
        prediction: Prediction,
        setting: Setting,
        asked: Sequence[tuple[int, float | None]] = (),
    ) -> Step:
        """Ask the best model at the setting's price; then give the answer there is."""
        if asked:
            m, why = asked[-1][0], "the one answer asked for"
        else:
            price = float(parameter(setting, "price", self.name))
            m = int(chosen_at(prediction, price)[0])
            why = "best predicted quality for its cost"
        quality, cost = float(prediction.quality[0, m]), float(prediction.cost[0, m])
        return Step(m, not asked, not asked, quality, cost, why)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """The fitted router."""
        return nested({"router": part_state(self.router_)})

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same strategy again."""
        router = part_back(routers, plain["router"], inside("router", arrays))
        strategy = cls(router)
        strategy.router_ = router
        return strategy
