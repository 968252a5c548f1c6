"""Cascades over a log: the cheap model first, a dearer one while the answer looks doubtful.

FrugalGPT (Chen et al. 2023, arXiv 2305.05176) learns such a list of up to three models with a
threshold each. Where we depart: any signal of the log and any rule on it (confidence, a window,
learned deferral), lists of any length, all operating points from one search, thresholds only from
rows that nothing was trained on, and the price of obtaining the signal counted.

Legend: N queries, M models, L models of one cascade.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool import deferral, routers
from pointsman.pool.deferral.rules import NEVER, Bounds, Rule, require_signal
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain, inside, nested
from pointsman.pool.strategies.chain_search import Cascade, search
from pointsman.pool.strategies.crossfit import unseen
from pointsman.pool.strategies.keeping import part_back, part_state
from pointsman.pool.strategies.strategy import Setting, Step, Taken
from pointsman.pool.strategies.taking import Constants, named, parameter, taken

Array = npt.NDArray[np.float64]


class Chain:
    """Ask the models of a list in turn, until the rule keeps an answer; the last is always kept.

    Args:
        rule: such as `Confidence("confidence")`, `Window(...)` or `Gain(...)`; or the name of a
            signal, which means `Confidence` of it.
        router: whose predictions the rule may use beside the signal; None: each model's means.
        most: models in a list, at most.

    Attributes:
        rule_: fitted.
        router_: fitted, or the means.

    Raises:
        InputError: fewer than one model.
    """

    def __init__(self, rule: Rule | str, router: Any = None, most: int = 4) -> None:
        if most < 1:
            raise InputError(f"a cascade has at least one model, got most={most}")
        self.rule: Rule = deferral.Confidence(rule) if isinstance(rule, str) else rule
        self.router = router
        self.most = most
        self.signal: str | None = self.rule.signal
        about = "" if router is None else f" and {router.name}"
        self.name = f"cascade by {self.rule.title}{about}"
        self.title = f"Cascade by {self.rule.title}{about}"

    def fit(self, log: Log, features: Features) -> Self:
        """Fit the router, and the rule on predictions of rows that the router did not see.

        Raises:
            InputError: the log does not have the rule's signal.
        """
        require_signal(log, self.rule.signal)
        self.models_ = log.models
        if self.router is None:
            self.router_: Any = Constants().fit(log)
            before = self.router_.predict(features)
        else:
            before = unseen(self.router, log, features)
            self.router_ = copy.deepcopy(self.router).fit(features, log.quality, log.cost)
        self.rule_: Rule = copy.deepcopy(self.rule).fit(log, before)
        return self

    def predict(self, features: Features) -> Prediction:
        """The router's prediction, or each model's means."""
        found: Prediction = self.router_.predict(features)
        return found

    def settings(self, log: Log, prediction: Prediction) -> tuple[Setting, ...]:
        """Lists of models with their bounds, from dear to cheap; see `search`.

        Raises:
            InputError: no row of the log is complete.
        """
        found = search(log, prediction, self.rule_, self.most)
        return named([_words(each, log.models) for each in found], [_plain(each) for each in found])

    def take(self, log: Log, prediction: Prediction, setting: Setting) -> Taken:
        """Walk the list for all queries at once."""
        cascade = _cascade(setting, self.name)
        signal = require_signal(log, self.rule_.signal)
        models, n = cascade.models, len(log)
        asked = np.full((n, len(models)), -1, dtype=np.int64)
        judged = np.zeros((n, len(log.models)), dtype=bool)
        answered = np.full(n, models[0], dtype=np.int64)
        rows = np.arange(n)
        for place, model in enumerate(models):
            asked[rows, place] = model
            answered[rows] = model
            if place == len(models) - 1 or len(rows) == 0:
                break
            judged[rows, model] = True
            some = Prediction(prediction.quality[rows], prediction.cost[rows])
            score = self.rule_.score(model, models[place + 1], signal[rows, model], some)
            rows = rows[cascade.bounds[place].inside(score)]
        return taken(asked, answered, judged, len(log.models))

    def step(
        self,
        prediction: Prediction,
        setting: Setting,
        asked: Sequence[tuple[int, float | None]] = (),
    ) -> Step:
        """Ask the first model; then keep the last answer, or ask the next model of the list.

        An answer of a model that is not in the list (one that stood in for another) is kept.
        """
        cascade = _cascade(setting, self.name)
        models = cascade.models
        if not asked:
            return _ask(prediction, models, 0, "first of the cascade")
        model, signal = asked[-1]
        place = models.index(model) if model in models else len(models) - 1
        told = "" if signal is None else f" {signal:.3g}"
        if place < len(models) - 1:
            value = np.array([np.nan if signal is None else signal], dtype=np.float64)
            score = self.rule_.score(model, models[place + 1], value, prediction)
            if bool(cascade.bounds[place].inside(score)[0]):
                why = f"{self.rule_.signal}{told or ' not known'}: the answer is in doubt"
                return _ask(prediction, models, place + 1, why)
            why = f"{self.rule_.signal}{told}: the answer is kept"
        else:
            why = "last of the cascade"
        quality, cost = float(prediction.quality[0, model]), float(prediction.cost[0, model])
        return Step(model, False, False, quality, cost, why)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords, the rule and the router."""
        parts = {"rule": part_state(self.rule_)}
        if self.router is None:
            parts["means"] = self.router_.to_state()
        else:
            parts["router"] = part_state(self.router_)
        plain, arrays = nested(parts)
        return {"most": self.most, "models": list(self.models_), **plain}, arrays

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same strategy again."""
        rule = part_back(deferral, plain["rule"], inside("rule", arrays))
        router = None
        if "router" in plain:
            router = part_back(routers, plain["router"], inside("router", arrays))
        strategy = cls(rule, router, int(plain["most"]))
        strategy.models_ = tuple(plain["models"])
        strategy.rule_ = rule
        strategy.router_ = router or Constants.from_state({}, inside("means", arrays))
        return strategy


def _ask(prediction: Prediction, models: Sequence[int], place: int, why: str) -> Step:
    m = models[place]
    quality, cost = float(prediction.quality[0, m]), float(prediction.cost[0, m])
    return Step(m, True, place == len(models) - 1, quality, cost, why)


def _plain(cascade: Cascade) -> dict[str, Any]:
    return {
        "models": list(cascade.models),
        "low": [bounds.low for bounds in cascade.bounds],
        "high": [bounds.high for bounds in cascade.bounds],
    }


def _cascade(setting: Setting, strategy: str) -> Cascade:
    models = tuple(int(m) for m in parameter(setting, "models", strategy))
    parameters: Mapping[str, Any] = setting.parameters
    bounds = tuple(
        Bounds(*pair) for pair in zip(parameters["low"], parameters["high"], strict=True)
    )
    if not models or len(bounds) != len(models) - 1:
        raise InputError(
            f"the setting {setting.knob!r} needs bounds for each model but the last, got "
            f"{len(models)} models and {len(bounds)} bounds"
        )
    return Cascade(models, bounds)


def _words(cascade: Cascade, names: Sequence[str]) -> str:
    """Such as "small, below 0.72 large"."""
    words = names[cascade.models[0]]
    for bounds, model in zip(cascade.bounds, cascade.models[1:], strict=True):
        if bounds.low is None and bounds.high is None:
            where = "always"
        elif bounds == NEVER:
            where = "without a signal"
        elif bounds.low is None:
            where = f"below {bounds.high:.6g}"
        elif bounds.high is None:
            where = f"from {bounds.low:.6g}"
        else:
            where = f"in {bounds.low:.6g}..{bounds.high:.6g}"
        words += f", {where} {names[model]}"
    return words
