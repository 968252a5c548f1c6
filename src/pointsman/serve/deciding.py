"""Whom a request goes to: what its `model` names, which models can take it, and what comes next.

`pointsman` is the point that the server serves by default, `pointsman:NAME` a point of the policy,
and a model's own name that model, past the policy. Models that a request needs more of than they
have (images, audio, tools, context) are left out.

Where the model that the policy chose cannot take the request, or does not answer, the next is the
cheapest of those that are predicted to be at least as good, and after these the best of the rest:
the promise is about quality, so that comes first.
"""

import base64
import binascii
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, PointsmanError
from pointsman.pool.decision import Decision, OperatingPoint
from pointsman.pool.features.endpoint import EndpointEncoder
from pointsman.pool.features.folder import FolderEncoder
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.strategy import Step
from pointsman.serve.config import Config, Model
from pointsman.serve.online import NAME as ONLINE
from pointsman.serve.online import Online
from pointsman.serve.refusal import RefusalError
from pointsman.serve.request import ChatRequest, Needs
from pointsman.serve.store import Key

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

SLOW = (EndpointEncoder, FolderEncoder)
PREFIX = "pointsman"
CERTIFIED = "certified"


@dataclass
class Plan:
    """How one request is to be answered.

    Args:
        point: of the policy, or None where the request names a model.
        model: to ask first.
        others: to ask where it gives no answer, in this order.
        why: in a few words.
        final: the answer is given whatever it is.
        quality: predicted, or None.
        cost: predicted, in US$, or None.
        decision: of the policy, or None.
        how: `model` was chosen, see `store.records.HOW`; None where the request names it.
        propensity: probability of what is done first; None where it is not known.
        propensities: of every model to be asked first and its answer given, or None.
        context: what a bandit may learn by, or None.
    """

    point: str | None
    model: str
    others: Sequence[str] = ()
    why: str = "named in the request"
    final: bool = True
    quality: float | None = None
    cost: float | None = None
    decision: Decision | None = None
    how: str | None = None
    propensity: float | None = None
    propensities: Mapping[str, float] | None = None
    context: Mapping[str, float] | None = None


class Decider:
    """Turns requests into plans.

    Args:
        policy: that is served.
        config: of the server.
        chance: draws from [0, 1).
        online: the bandit of the point "online"; None: there is no such point.

    Attributes:
        slow: deciding may take long, since the encoder asks a network of its own or one elsewhere;
            where that fails the reference answers.

    Raises:
        InputError: the policy has a model, a point or a signal that the configuration lacks.
    """

    def __init__(
        self,
        policy: "PoolPolicy",
        config: Config,
        chance: Callable[[], float] = random.random,
        online: Online | None = None,
    ) -> None:
        self.policy, self.config, self.chance, self.online = policy, config, chance, online
        self.slow = isinstance(policy.encoder, SLOW)
        if missing := [name for name in policy.models if name not in config.models]:
            raise InputError(
                f"the policy routes to {', '.join(policy.models)}, but models.toml has no "
                f"[models.{missing[0]}]: add it"
            )
        signals = {strategy.signal for strategy in policy.strategies.values() if strategy.signal}
        if missing := sorted(signals - set(config.signals)):
            raise InputError(
                f"the policy reads the signal {missing[0]!r} off answers, but models.toml has no "
                f"[signals.{missing[0]}]: say how it is obtained"
            )
        for name in (config.policy.point, config.policy.floor):
            if name is not None:
                policy.point(name)

    def plan(
        self,
        request: ChatRequest,
        key: Key | None = None,
        *,
        task: str | None = None,
        vector: npt.NDArray[np.float32] | None = None,
        pace: float | None = None,
        alarmed: bool = False,
    ) -> Plan:
        """Whom to ask.

        Args:
            request: of the client.
            key: of the client, or None where none is asked for.
            task: that the query belongs to, if the client says so.
            vector: embedding of the query, if the client brings one.
            pace: US$ that a request without a point of its own should cost, or None.
            alarmed: the certificate does not hold any more.

        Raises:
            RefusalError: there is no such model or point, or none that can take the request.
        """
        asked = request.model
        if asked in self.config.models:
            self._allow(asked, key)
            return Plan(None, asked)
        point = self._point(asked, key, pace)
        alarm = alarmed and point.name == CERTIFIED and self.config.policy.fall_back
        try:
            decision = self.policy.decide(
                request.query,
                point=self.policy.point("reference") if alarm else point,
                task=task,
                vector=vector,
                chance=self.chance(),
            )
        except PointsmanError as error:
            if not self.slow:
                raise RefusalError(400, str(error)) from None
            return self._unencoded(request, point.name)
        if self.online is not None and point is self.online.point:
            return self._online(request, decision, self.online)
        plan = self._fitted(request, decision, point.name)
        if self.online is not None:
            plan.context = self.online.context(decision.prediction)
        if not alarm:
            return self._explored(request, key, plan, decision)
        plan.why = "drift alarm: the certificate does not hold, so the reference answers"
        plan.how = "alarm" if plan.how == "policy" else plan.how
        return plan

    def next(self, request: ChatRequest, plan: Plan, step: Step) -> Plan:
        """The plan for a further step of the same decision."""
        assert plan.decision is not None
        found = self._fitted(request, plan.decision, plan.point or "", step)
        found.how, found.propensity = plan.how, plan.propensity
        found.propensities = plan.propensities
        return found

    def points(self, key: Key | None = None) -> list[str]:
        """What `model` may be, in requests with this key."""
        names = [*self.policy.named, *([] if self.online is None else [ONLINE])]
        named = [f"{PREFIX}:{name}" for name in names]
        found = [PREFIX, *named, *self.config.models]
        if key is None or key.points is None:
            return found
        allowed = key.points
        return [name for name in found if name.removeprefix(f"{PREFIX}:") in (*allowed, PREFIX)]

    def _point(self, asked: str, key: Key | None, pace: float | None) -> OperatingPoint:
        """The point that a request is served at."""
        prefix, colon, name = asked.partition(":")
        if prefix != PREFIX or (colon and not name):
            raise _no_model(asked, self.points())
        serving = self.config.policy
        try:
            if name:
                self._allow(name, key)
                if self.online is not None and name == ONLINE:
                    return self._learning_point(self.online, key)
                point = self.policy.point(name)
            elif pace is not None:
                point = self._not_below(self.policy.at_cost(pace), serving.floor)
            else:
                default = serving.point
                if key is not None and key.points is not None and default not in key.points:
                    default = next((p for p in key.points if p not in self.config.models), default)
                    self._allow(default, key)
                point = self.policy.point(default)
            return self._not_below(point, None if key is None else key.floor)
        except InputError as error:
            raise _no_model(asked, self.points(), str(error)) from None

    @staticmethod
    def _learning_point(online: Online, key: Key | None) -> OperatingPoint:
        if key is not None and key.floor is not None:
            raise RefusalError(
                403,
                f"this key has the floor {key.floor!r}, which a bandit cannot keep: ask for "
                "another point",
                "permission_error",
                "model_not_allowed",
                "model",
            )
        return online.point

    def _online(self, request: ChatRequest, decision: Decision, online: Online) -> Plan:
        """The plan of a bandit."""
        names, prediction = self.policy.models, decision.prediction
        able = [m for m, name in enumerate(names) if fits(self.config.models[name], request.needs)]
        if not able:
            raise _cannot(request.needs)
        drawn, shares = online.choose(online.worth(prediction), able, self.chance)
        return Plan(
            point=ONLINE,
            model=names[drawn],
            others=[names[m] for m in _order(prediction, drawn) if m in able],
            why="online: chosen by a bandit that learns, not certified",
            quality=float(prediction.quality[0, drawn]),
            cost=float(prediction.cost[0, drawn]),
            decision=decision,
            how="online",
            propensity=float(shares[drawn]),
            propensities=dict(zip(names, shares.tolist(), strict=True)),
            context=online.context(prediction),
        )

    def _not_below(self, point: OperatingPoint, floor: str | None) -> OperatingPoint:
        if floor is None:
            return point
        lowest = self.policy.point(floor)
        return lowest if point.quality < lowest.quality else point

    def _allow(self, name: str, key: Key | None) -> None:
        if key is not None and key.points is not None and name not in key.points:
            raise RefusalError(
                403,
                f"this key may ask for {', '.join(key.points)}, not for {name!r}",
                "permission_error",
                "model_not_allowed",
                "model",
            )

    def _unencoded(self, request: ChatRequest, point: str) -> Plan:
        """The reference, and after it whoever can take the request."""
        reference = self.policy.reference
        names = [reference, *(name for name in self.policy.models if name != reference)]
        able = [name for name in names if fits(self.config.models[name], request.needs)]
        if not able:
            raise _cannot(request.needs)
        why = "the query could not be encoded, so the reference answers"
        return Plan(point, able[0], able[1:], why, how="substitute")

    def _fitted(
        self, request: ChatRequest, decision: Decision, point: str, step: Step | None = None
    ) -> Plan:
        """The plan for a step, with models that cannot take the request left out."""
        prediction = decision.prediction
        first = step is None
        step = decision.step if step is None else step
        names = self.policy.models
        order = [step.model, *_order(prediction, step.model)]
        able = [m for m in order if fits(self.config.models[names[m]], request.needs)]
        if not able:
            raise _cannot(request.needs)
        chosen, *others = able
        plan = Plan(
            point=point,
            model=names[chosen],
            others=[names[m] for m in others],
            why=step.why,
            final=step.final,
            quality=step.quality,
            cost=step.cost,
            decision=decision,
        )
        if chosen != step.model:
            plan.how = "substitute"
            plan.why = f"{names[step.model]} cannot take this request"
            plan.quality = float(prediction.quality[0, chosen])
            plan.cost = float(prediction.cost[0, chosen])
        elif first:
            plan.how = "policy" if step.final else "cascade"
            if all(m in able for m, name in enumerate(names) if decision.probabilities[name] > 0):
                outright = decision.outright[plan.model]
                every = decision.probabilities[plan.model]
                plan.propensity = float(outright if step.final else every - outright)
                plan.propensities = dict(decision.outright)
        return plan

    def _explored(
        self, request: ChatRequest, key: Key | None, plan: Plan, decision: Decision
    ) -> Plan:
        """The plan, or by chance another for a model drawn evenly among those that are able.

        Either way the probabilities become those of the mixture of both.
        """
        serving, names = self.config.policy, self.policy.models
        promised = plan.point == CERTIFIED and not serving.explore_certified
        if not serving.explore or promised or (key is not None and key.floor is not None):
            return plan
        share = serving.explore
        able = [m for m, name in enumerate(names) if fits(self.config.models[name], request.needs)]
        if plan.propensity is not None and plan.propensities is not None:
            mixed = {name: (1 - share) * p for name, p in plan.propensities.items()}
            for m in able:
                mixed[names[m]] += share / len(able)
            plan.propensities = mixed
            plan.propensity = mixed[plan.model] if plan.final else (1 - share) * plan.propensity
        if self.chance() >= share:
            return plan
        drawn = able[int(self.chance() * len(able))]
        prediction, known = decision.prediction, plan.propensities
        return Plan(
            point=plan.point,
            model=names[drawn],
            others=[names[m] for m in _order(prediction, drawn) if m in able],
            why="explored: drawn evenly among the models",
            quality=float(prediction.quality[0, drawn]),
            cost=float(prediction.cost[0, drawn]),
            decision=decision,
            how="explored",
            propensity=None if known is None else known[names[drawn]],
            propensities=known,
            context=plan.context,
        )


def fits(model: Model, needs: Needs) -> bool:
    """Whether a model can take a request."""
    return (
        (model.vision or not needs.vision)
        and (model.audio or not needs.audio)
        and (model.tools or not needs.tools)
        and (model.context is None or needs.tokens <= model.context)
    )


def read_vector(text: str | None) -> npt.NDArray[np.float32] | None:
    """An embedding from a header: base64 of 32-bit floats, little-endian.

    Raises:
        RefusalError: it is not that.
    """
    if text is None:
        return None
    try:
        vector = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        vector = np.empty(0, dtype=np.float32)
    if vector.size == 0 or not np.isfinite(vector).all():
        raise RefusalError(400, "x-pointsman-vector must be base64 of finite 32-bit floats")
    return vector.astype(np.float32)


def _order(prediction: Prediction, chosen: int) -> list[int]:
    """The other columns: those predicted as good or better by cost, then the rest by quality."""
    quality, cost = prediction.quality[0], prediction.cost[0]
    others = [m for m in range(len(quality)) if m != chosen]
    as_good = [m for m in others if quality[m] >= quality[chosen]]
    worse = [m for m in others if quality[m] < quality[chosen]]
    return [*sorted(as_good, key=lambda m: cost[m]), *sorted(worse, key=lambda m: -quality[m])]


def _no_model(asked: str, known: Sequence[str], reason: str = "") -> RefusalError:
    words = f" ({reason})" if reason else ""
    return RefusalError(
        404,
        f"there is no model {asked[:100]!r}{words}: use one of {', '.join(known)}",
        code="model_not_found",
        param="model",
    )


def _cannot(needs: Needs) -> RefusalError:
    wanted = [name for name in ("vision", "audio", "tools") if getattr(needs, name)]
    wanted.append(f"a context of {needs.tokens:,} tokens")
    return RefusalError(
        400, f"no model of the policy takes {' and '.join(wanted)}", param="messages"
    )
