"""Routing before the call and deferral after the answer, as one decision.

The idea is cascade routing: Dekoninck, Baader & Vechev 2024, "A Unified Approach to Routing and
Cascading for LLMs" (arXiv 2410.10347). Before every call all ways on are compared by expected
quality less a price times expected cost, with estimates that are renewed after each answer; routing
and cascading are its special cases. Where ours departs:

- the estimates after an answer are joint beliefs (`Beliefs`): the signal of one answer also changes
  what is expected of the models not asked yet, where theirs are independent estimates;
- theirs picks the best set of further models to run ("supermodel"), valued by the expected maximum
  of its estimates. Ours values one further call by what can be decided after its signal is known
  (stop with the best answer so far, or one last call), which is the knowledge gradient with
  correlated beliefs (Frazier, Powell & Dayanik 2009), and decides anew after every answer;
- obtaining a signal has its own cost, and a call whose answer is given whatever it is needs none;
- one price for all stages, from held-out rows, where theirs tunes several hyperparameters.

With no signal, or one that tells nothing, it is `BeforeCall` exactly; with a router that knows
nothing of the query (`Constant`) and two models it is a cascade with one threshold.

Legend: N queries, M models, A models that answered, B further models.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool import routers
from pointsman.pool.deferral.beliefs import Beliefs
from pointsman.pool.deferral.rules import require_signal
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Arrays, Plain, inside, nested
from pointsman.pool.strategies.crossfit import unseen
from pointsman.pool.strategies.keeping import part_back, part_state
from pointsman.pool.strategies.prices import prices
from pointsman.pool.strategies.strategy import Setting, Step, Taken
from pointsman.pool.strategies.taking import (
    Columns,
    best_option,
    named,
    parameter,
    taken,
    thinned,
)

Array = npt.NDArray[np.float64]
CANDIDATES = 56  # prices whose cost is looked at
MOST_PRICES = 40
ROWS = 2000  # held-out rows that the prices are spread over
AT_ONCE = 4096  # queries decided together: memory is AT_ONCE * M * M
SMALL = 1 << 14  # numbers that are worked on at once
TOLERANCE = 1e-9  # judging must be worth more than this: rounding alone never buys a signal
STOP, FINAL, JUDGE = 0, 1, 2


class _Move(NamedTuple):
    """What to do with each query: (N,) STOP, FINAL or JUDGE, of which model, and what is expected.

    `quality` is (N, M), given the signals so far.
    """

    act: npt.NDArray[np.int64]
    column: Columns
    quality: Array


class RoutedCascade:
    """Ask the model of best value; judge its answer where that is worth it; stop or go on.

    With p the quality expected of a model given all signals so far, c its predicted cost, j the
    cost of judging it and L the price, the ways on are

    - to stop: the best p among the answers there are;
    - to ask model b and give its answer: p_b - L c_b;
    - to ask b and judge: -L (c_b + j_b) + E[max(best p among answers, b's included;
      best p - L c among the others)], the expectation over b's signal.

    The best is taken; of equal ones stopping before the last call before judging, and the cheaper
    model first. The answer given in the end is the one of best p among all that were asked.

    Args:
        router: predicts before the call; it is copied before it is fitted.
        signal: of the log, read after an answer; None: nothing is read.
        most: models asked for one query, at most.

    Attributes:
        router_: fitted on all training rows.
        beliefs_: fitted on predictions that had not seen their rows.
        judging_: (M,) mean cost of obtaining the signal.

    Raises:
        InputError: fewer than one model.
    """

    def __init__(self, router: Any, signal: str | None, most: int = 3) -> None:
        if most < 1:
            raise InputError(f"at least one model is asked, got most={most}")
        self.router = router
        self.signal = signal
        self.most = most
        self.name = f"{router.name} then {signal or 'no signal'}"
        self.title = f"{router.title}, then {signal or 'no signal'}"

    def fit(self, log: Log, features: Features) -> Self:
        """Fit the router, and the beliefs on predictions of rows that it did not see.

        Raises:
            InputError: the log does not have the signal.
        """
        models = len(log.models)
        self.judging_ = np.zeros(models)
        if self.signal is None:
            before, signal = Prediction(log.quality, log.cost), np.full(log.quality.shape, np.nan)
        else:
            signal = require_signal(log, self.signal)
            before = unseen(self.router, log, features)
            spent = log.signal_cost.get(self.signal)
            if spent is not None:
                known = np.isfinite(spent)
                total = np.where(known, spent, 0.0).sum(axis=0)
                self.judging_ = total / np.maximum(known.sum(axis=0), 1)
        self.beliefs_ = Beliefs().fit(log.quality, before.quality, signal)
        self.router_ = copy.deepcopy(self.router).fit(features, log.quality, log.cost)
        return self

    def predict(self, features: Features) -> Prediction:
        """The router's prediction, before any answer."""
        found: Prediction = self.router_.predict(features)
        return found

    def settings(self, log: Log, prediction: Prediction) -> tuple[Setting, ...]:
        """Prices from 0 up, spread over what they spend on this log."""
        if self.signal is None:
            grid = prices(prediction, least=0.0)
        else:
            grid = _with_ladder(prices(prediction, least=0.0, most=CANDIDATES // 2))
            some = np.unique(np.linspace(0, len(log) - 1, ROWS).round().astype(int))
            rows = log.take(some)
            before = Prediction(prediction.quality[some], prediction.cost[some])
            spent = [self._spent(rows, before, price) for price in grid]
            grid = [grid[at] for at in thinned(spent, MOST_PRICES)]
        return named([f"price {price:.6g}" for price in grid], [{"price": p} for p in grid])

    def take(self, log: Log, prediction: Prediction, setting: Setting) -> Taken:
        """Decide all queries together, those that asked the same models at a time."""
        price = float(parameter(setting, "price", self.name))
        n, models = len(log), len(log.models)
        signal = None if self.signal is None else require_signal(log, self.signal)
        slots = np.full((n, self.most), -1, dtype=np.int64)
        judged, answered = np.zeros((n, models), dtype=bool), np.full(n, -1, dtype=np.int64)
        waiting: list[tuple[tuple[int, ...], npt.NDArray[np.int64]]] = [
            ((), np.arange(start, min(start + AT_ONCE, n))) for start in range(0, n, AT_ONCE)
        ]
        while waiting:
            asked, rows = waiting.pop()
            some = Prediction(prediction.quality[rows], prediction.cost[rows])
            values = [] if signal is None else [signal[rows, m] for m in asked]
            move = self._decide(some, asked, values, price)
            going = move.act != STOP
            slots[rows[going], len(asked)] = move.column[going]
            judge = move.act == JUDGE
            answered[rows[~judge]] = move.column[~judge]
            judged[rows[judge], move.column[judge]] = True
            waiting.extend(
                ((*asked, int(m)), rows[judge & (move.column == m)])
                for m in np.unique(move.column[judge])
            )
        return taken(slots, answered, judged, models)

    def step(
        self,
        prediction: Prediction,
        setting: Setting,
        asked: Sequence[tuple[int, float | None]] = (),
    ) -> Step:
        """Stop with the best answer so far, or ask one more model."""
        price = float(parameter(setting, "price", self.name))
        told_by = dict(asked)  # a model that was asked again counts once, by its last signal
        values = [
            np.array([np.nan if s is None else s], dtype=np.float64) for s in told_by.values()
        ]
        move = self._decide(prediction, tuple(told_by), values, price)
        act, m = int(move.act[0]), int(move.column[0])
        if asked:
            told = "not known" if asked[-1][1] is None else f"{asked[-1][1]:.3g}"
            why = f"{self.signal} {told}: "
            why += "the answer is kept" if act == STOP else "another model is worth its cost"
        else:
            why = "best predicted quality for its cost"
        cost = float(prediction.cost[0, m])
        return Step(m, act != STOP, act == FINAL, float(move.quality[0, m]), cost, why)

    def _decide(
        self, prediction: Prediction, asked: tuple[int, ...], signal: Sequence[Array], price: float
    ) -> _Move:
        """The best way on for N queries that asked the same models in the same order.

        Every operation is by element, or a maximum: a query's decision does not hang on the others.
        """
        news = [
            self.beliefs_.evidence(m, values, prediction.quality)
            for m, values in zip(asked, signal, strict=True)
        ]
        p = self.beliefs_.expected(asked, news, prediction.quality)
        cost, (n, models) = prediction.cost, prediction.quality.shape
        free = np.ones(models, dtype=bool)
        free[list(asked)] = False
        there = np.where(free, -np.inf, p)
        last = np.where(free, p - price * cost, -np.inf)
        act = np.full(n, FINAL if free.any() else STOP)
        column, best = best_option(last, cost), last.max(axis=1)
        if asked:
            stop = there.max(axis=1)
            stays = (stop >= best) | (len(asked) >= self.most)
            act = np.where(stays, STOP, act)
            column = np.where(stays, there.argmax(axis=1), column)
            best = np.where(stays, stop, best)
        if len(asked) < self.most - 1 and np.count_nonzero(free) > 1 - bool(asked):
            judge = self._judged(p, cost, asked, free, price)
            worth = judge.max(axis=1) > best + TOLERANCE
            act = np.where(worth, JUDGE, act)
            column = np.where(worth, best_option(judge, cost), column)
        return _Move(act, column, p)

    def _judged(
        self,
        p: Array,
        cost: Array,
        asked: tuple[int, ...],
        free: npt.NDArray[np.bool_],
        price: float,
    ) -> Array:
        """(N, M) value of asking a model and judging its answer; -inf where there is none."""
        _, _, open_, shifts = self.beliefs_.moves(asked)
        value = np.full(p.shape, -np.inf)
        if len(open_) == 0:
            return value
        # (N, B, M): what each model is worth once b has answered, before b's signal is known
        worth = np.where(free, p - price * cost, p)[:, None, :].repeat(len(open_), axis=1)
        worth[:, np.arange(len(open_)), open_] = p[:, open_]
        expected = np.zeros((len(p), len(open_)))
        if worth.size * shifts.shape[2] <= SMALL:  # the same sums in the same order, in fewer calls
            best = (worth[:, :, :, None] + shifts).max(axis=2)
            for node in range(shifts.shape[2]):
                expected += best[:, :, node]
        else:
            for node in range(shifts.shape[2]):
                expected += (worth + shifts[:, :, node]).max(axis=2)
        spent = price * (cost[:, open_] + self.judging_[open_])
        value[:, open_] = expected / shifts.shape[2] - spent
        return value

    def _spent(self, log: Log, prediction: Prediction, price: float) -> float:
        """Mean predicted cost on the queries of a log, judging included."""
        done = self.take(log, prediction, Setting("", {"price": price}))
        inputs, models = done.route.inputs.numpy(), done.route.branches.numpy()
        spent = prediction.cost[inputs, models].sum() + (done.judged * self.judging_).sum()
        return float(spent) / len(log)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Keywords, the router, the beliefs and what judging costs."""
        parts = {"router": part_state(self.router_), "beliefs": self.beliefs_.to_state()}
        plain, arrays = nested(parts)
        return (
            {"signal": self.signal, "most": self.most, **plain},
            {**arrays, "judging": self.judging_},
        )

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same strategy again."""
        router = part_back(routers, plain["router"], inside("router", arrays))
        strategy = cls(router, plain["signal"], int(plain["most"]))
        strategy.router_ = router
        strategy.beliefs_ = Beliefs.from_state(plain["beliefs"], inside("beliefs", arrays))
        strategy.judging_ = np.asarray(arrays["judging"])
        return strategy


def _with_ladder(grid: Sequence[float]) -> list[float]:
    """The router's prices and a ladder around them: a signal moves what is expected beyond them."""
    above = [price for price in grid if price > 0]
    if not above:
        return list(grid)
    ladder = np.geomspace(above[0] / 30, above[-1] * 100, CANDIDATES // 2)
    return sorted({*grid, *ladder.tolist()})
