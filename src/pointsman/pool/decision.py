"""One query decided: the step to take now, and the next ones once answers are there.

Legend: M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pointsman.errors import InputError
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.strategy import Setting, Step, Strategy


@dataclass(frozen=True)
class Share:
    """A setting of a strategy, and the share of the queries that it gets."""

    strategy: str
    setting: Setting
    share: float


@dataclass(frozen=True)
class OperatingPoint:
    """A mixture of settings, with its mean quality and cost per query on the validation part."""

    name: str
    mix: tuple[Share, ...]
    quality: float
    cost: float

    def words(self) -> str:
        """Such as "70% linear: price 2 + 30% linear: price 9"."""
        if len(self.mix) == 1:
            return f"{self.mix[0].strategy}: {self.mix[0].setting.knob}"
        return " + ".join(f"{s.share:.1%} {s.strategy}: {s.setting.knob}" for s in self.mix)


class Decision:
    """A query under way.

    Attributes:
        point: the operating point it was decided at.
        strategy: whose setting chance picked.
        signal: what is to be read off an answer when the step is not final; None: nothing.
        setting: the one that chance picked.
        prediction: (1, M) expected before any answer.
        probabilities: model to the probability, over the mixture's chance, to be asked first.
        outright: model to the probability to be asked first and to have its answer given whatever
            it is; the rest of `probabilities` is what is judged first.
        step: what to do now.
        asked: models asked so far with their signals.
    """

    def __init__(
        self,
        models: tuple[str, ...],
        strategies: Mapping[str, Strategy],
        point: OperatingPoint,
        predictions: Mapping[str, Prediction],
        chance: float,
    ) -> None:
        self._models = models
        self.point = point
        steps = [
            strategies[share.strategy].step(predictions[share.strategy], share.setting)
            for share in point.mix
        ]
        place, below = 0, 0.0
        for place, share in enumerate(point.mix):  # noqa: B007
            below += share.share
            if chance < below:
                break
        picked = point.mix[place]
        self._strategy = strategies[picked.strategy]
        self.strategy, self.setting = picked.strategy, picked.setting
        self.signal = self._strategy.signal
        self.prediction = predictions[picked.strategy]
        self.step: Step = steps[place]
        self.asked: list[tuple[int, float | None]] = []
        self.probabilities = dict.fromkeys(models, 0.0)
        self.outright = dict.fromkeys(models, 0.0)
        for share, step in zip(point.mix, steps, strict=True):
            self.probabilities[models[step.model]] += share.share
            if step.final:
                self.outright[models[step.model]] += share.share
        self.probability = self.probabilities[models[self.step.model]]

    @property
    def model(self) -> str:
        """Name of the model that the step is about."""
        return self._models[self.step.model]

    @property
    def why(self) -> str:
        """A few words for a response header."""
        return self.step.why

    @property
    def quality(self) -> float:
        """Expected of the step's model on this query."""
        return self.step.quality

    @property
    def cost(self) -> float:
        """Expected of the step's call, in the policy's unit."""
        return self.step.cost

    def after(self, signal: float | None) -> Step:
        """The next step, once the model asked has answered; it becomes `step`.

        Args:
            signal: of its answer; None where it could not be obtained, the least sure.

        Raises:
            InputError: the step that was under way asked nobody.
        """
        if not self.step.ask:
            raise InputError("the decision is made: its last step asked no model")
        self.asked.append((self.step.model, signal))
        if self.step.final:
            self.step = self.step._replace(ask=False, final=False)
        else:
            self.step = self._strategy.step(self.prediction, self.setting, self.asked)
        return self.step

    def replaced(self, model: str, signal: float | None = None) -> Step:
        """The next step, after another model has answered in place of the one to ask.

        Args:
            model: that stood in, because the one to ask could not be reached.
            signal: of its answer.

        Raises:
            InputError: there is no such model.
        """
        if model not in self._models:
            raise InputError(f"there is no model {model!r}: there are {', '.join(self._models)}")
        self.step = self.step._replace(model=self._models.index(model))
        return self.after(signal)

    def alternatives(self) -> tuple[str, ...]:
        """The other models not asked yet, of best predicted quality first: whom to ask instead."""
        done = {self.step.model, *(m for m, _ in self.asked)}
        quality, cost = self.prediction.quality[0], self.prediction.cost[0]
        open_: Sequence[int] = [m for m in range(len(self._models)) if m not in done]
        ranked = sorted(open_, key=lambda m: (-quality[m], cost[m], m))
        return tuple(self._models[m] for m in ranked)
