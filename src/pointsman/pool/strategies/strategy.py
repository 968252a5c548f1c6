"""What a strategy is: whom to ask first, whom to ask next, and whose answer to give.

The same strategy decides a whole log at once (`take`, vectorised, to measure what it would have
reached) and one query step by step (`step`, to serve); a test battery checks that both agree.

Legend: N queries, M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.frontier.points import Outcomes
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction

if TYPE_CHECKING:  # a server that decides one query at a time does without torch
    from pointsman.route import Route


@dataclass(frozen=True)
class Setting:
    """One position of a strategy's knob.

    Args:
        knob: in words, different from every other setting's of the strategy: "price 0.35".
        parameters: plain JSON values that the strategy reads.
    """

    knob: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


class Taken(NamedTuple):
    """What a setting did with every query of a log.

    Args:
        route: (N queries, M models) every model asked; weight 1 for the model whose answer was
            given, 0 for one that was asked and passed over.
        judged: (N, M) bool, answers whose signal was obtained and has to be paid.
    """

    route: "Route"
    judged: npt.NDArray[np.bool_]


class Step(NamedTuple):
    """What to do next with one query.

    Args:
        model: column of the model.
        ask: True: ask it. False: it was asked, and its answer is the one to give.
        final: with `ask`: its answer is given whatever it is, so nothing needs to be judged and it
            may be streamed.
        quality: expected of this model on this query.
        cost: expected of the call, in the log's unit.
        why: a few words for a response header.
    """

    model: int
    ask: bool
    final: bool
    quality: float
    cost: float
    why: str


class Strategy(Protocol):
    """A fitted way to choose among the models of a log, with one knob from good to cheap.

    Attributes:
        name: short, unique among the strategies of one comparison, such as "linear".
        title: for people, such as "Linear router".
        signal: what it reads off an answer before it decides to go on; None: nothing.
    """

    name: str
    title: str
    signal: str | None

    def fit(self, log: Log, features: Features) -> Self:
        """Learn from the training part; thresholds are not learned here."""
        ...

    def predict(self, features: Features) -> Prediction:
        """What is expected of every model."""
        ...

    def settings(self, log: Log, prediction: Prediction) -> tuple[Setting, ...]:
        """Settings worth a look, from the dearest to the cheapest, found on the validation part."""
        ...

    def take(self, log: Log, prediction: Prediction, setting: Setting) -> Taken:
        """Decide every query of a log; of its cells only signals of models asked are read."""
        ...

    def step(
        self,
        prediction: Prediction,
        setting: Setting,
        asked: Sequence[tuple[int, float | None]] = (),
    ) -> Step:
        """The next step for one query.

        Args:
            prediction: of one query, (1, M) each.
            setting: one of its settings.
            asked: models asked so far, in order, with the signal of each answer; None where it
                could not be obtained, which counts as the least sure.
        """
        ...


def outcomes(
    log: Log,
    strategy: Strategy,
    prediction: Prediction,
    settings: Sequence[Setting],
    reference: int,
) -> Outcomes:
    """What settings of a strategy reached on a log: every model asked is paid, the judge too.

    Knobs are "name: knob", as those of `pointsman compare`.

    Args:
        log: every cell that a setting needs must be there, see `Log.complete`.
        strategy: fitted on other queries.
        prediction: of these queries.
        settings: one or more.
        reference: column of the model whose quality is to be kept.

    Raises:
        InputError: a cell is missing that a setting needs.
    """
    quality, cost = [], []
    judging = None if strategy.signal is None else log.signal_cost.get(strategy.signal)
    for setting in settings:
        taken = strategy.take(log, prediction, setting)
        inputs, models = taken.route.inputs.numpy(), taken.route.branches.numpy()
        spent = np.zeros(len(log))
        np.add.at(spent, inputs, log.cost[inputs, models])
        if judging is not None:
            spent = spent + np.where(taken.judged, judging, 0.0).sum(axis=1)
        answered = taken.route.answered_by().numpy()
        reached = log.quality[np.arange(len(log)), answered]
        if np.isnan(reached).any() or np.isnan(spent).any():
            raise InputError(
                f"{strategy.name}, {setting.knob}: a model was chosen whose quality or cost is "
                "missing in the log: measure on the queries that every model answered, "
                "log.take(log.complete())"
            )
        quality.append(reached)
        cost.append(spent)
    return Outcomes(
        knobs=tuple(f"{strategy.name}: {setting.knob}" for setting in settings),
        quality=np.stack(quality),
        cost=np.stack(cost),
        reference_quality=log.quality[:, reference],
        reference_cost=log.cost[:, reference],
        unit=log.unit,
    )
