"""The points of a policy: found on the validation part, kept, and checked against its parts."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pointsman.errors import InputError, PolicyError
from pointsman.frontier.points import Frontier, Knob, Outcomes
from pointsman.pool.decision import OperatingPoint, Share
from pointsman.pool.log import Log
from pointsman.pool.routers.router import Prediction
from pointsman.pool.saving import Plain
from pointsman.pool.strategies.mixing import check_shares
from pointsman.pool.strategies.single import Single
from pointsman.pool.strategies.strategy import Setting, Strategy

NAMED = ("certified", "cheap", "best", "reference")


@dataclass(frozen=True)
class Corner:
    """One setting of one strategy, with its mean quality and cost on the validation part."""

    strategy: str
    setting: Setting
    quality: float
    cost: float


def found_points(
    strategies: Sequence[tuple[Strategy, Sequence[Setting]]],
    validation: Outcomes,
    reference: str,
    certified: Mapping[Knob, float] | None,
) -> tuple[tuple[Corner, ...], dict[str, OperatingPoint]]:
    """The corners of the hull, and the points that every policy names.

    Args:
        strategies: fitted, each with its settings.
        validation: outcomes of settings, knobs "name: knob".
        reference: a model, one of the settings of `Single`.
        certified: shares of knobs; None: the reference alone.

    Raises:
        InputError: a knob that no strategy has, no `Single`, or shares that do not sum to 1.
    """
    known = {
        f"{strategy.name}: {setting.knob}": (strategy.name, setting)
        for strategy, settings in strategies
        for setting in settings
    }
    alone = f"{Single.name}: {reference}"
    if alone not in known:
        raise InputError(
            f"a policy needs the reference {reference!r} as a setting of {Single.name!r} to fall "
            "back to: fit Single on the log and give it with its settings"
        )
    hull = Frontier.from_outcomes("policy", validation).hull().points
    means = zip(validation.quality.mean(axis=1), validation.cost.mean(axis=1), strict=True)
    reached = dict(zip(validation.knobs, means, strict=True))
    reference_means = (validation.reference_quality.mean(), validation.reference_cost.mean())
    reached.setdefault(alone, reference_means)

    def point(name: str, shares: Mapping[Knob, float]) -> OperatingPoint:
        check_shares(shares)
        mix, quality, cost = [], 0.0, 0.0
        for knob, share in shares.items():
            strategy, setting = _look(known, knob)
            mix.append(Share(strategy, setting, float(share)))
            q, c = _look(reached, knob)
            quality, cost = quality + share * float(q), cost + share * float(c)
        return OperatingPoint(name, tuple(mix), quality, cost)

    corners = []
    for place in hull:
        strategy, setting = _look(known, place.knob)
        corners.append(Corner(strategy, setting, place.quality, place.cost))
    return tuple(corners), {
        "certified": point("certified", certified or {alone: 1.0}),
        "cheap": point("cheap", {hull[0].knob: 1.0}),
        "best": point("best", {hull[-1].knob: 1.0}),
        "reference": point("reference", {alone: 1.0}),
    }


def between(
    corners: Sequence[Corner], name: str, places: Sequence[float], value: float
) -> OperatingPoint:
    """The mix of the two corners around a cost, or around a quality.

    Args:
        corners: ascending.
        name: of the point.
        places: cost, or quality, of each corner.
        value: beyond the ends the end itself is given.
    """
    at = bisect_left(places, value)
    if at == 0 or at == len(places) or places[at] == value:
        corner = corners[min(at, len(places) - 1)]
        mix = (Share(corner.strategy, corner.setting, 1.0),)
        return OperatingPoint(name, mix, corner.quality, corner.cost)
    low, high = corners[at - 1], corners[at]
    share = (value - places[at - 1]) / (places[at] - places[at - 1])
    return OperatingPoint(
        name,
        (Share(low.strategy, low.setting, 1 - share), Share(high.strategy, high.setting, share)),
        (1 - share) * low.quality + share * high.quality,
        (1 - share) * low.cost + share * high.cost,
    )


def check(
    models: Sequence[str],
    strategies: Mapping[str, Strategy],
    corners: Sequence[Corner],
    named: Mapping[str, OperatingPoint],
    reference: str,
) -> None:
    """Refuse parts that do not fit one another.

    Raises:
        PolicyError: what does not fit, in one line.
    """
    if reference not in models:
        raise PolicyError(f"the reference {reference!r} is none of the models {', '.join(models)}")
    if len(set(models)) < len(models):
        raise PolicyError(f"models must have different names, got {', '.join(models)}")
    missing = [name for name in NAMED if name not in named]
    if missing or not corners:
        raise PolicyError(f"a policy needs corners and the points {', '.join(NAMED)}: give them")
    for low, high in pairwise(corners):
        if not (low.cost < high.cost and low.quality < high.quality):
            raise PolicyError(
                "the corners of a policy rise in cost and quality, got "
                f"{low.setting.knob!r} before {high.setting.knob!r}"
            )
    uses = [(corner.strategy, corner.setting) for corner in corners]
    for point in named.values():
        uses += [(share.strategy, share.setting) for share in point.mix]
        check_shares({place: share.share for place, share in enumerate(point.mix)})
    for name, setting in uses:
        _check_use(strategies, name, setting, len(models))


def _check_use(
    strategies: Mapping[str, Strategy], name: str, setting: Setting, models: int
) -> None:
    if name not in strategies or strategies[name].name != name:
        raise PolicyError(f"a point uses the strategy {name!r}, which the policy does not have")
    blind = Prediction(np.zeros((1, models)), np.ones((1, models)))
    try:
        first = strategies[name].step(blind, setting)
    except Exception as error:
        raise PolicyError(
            f"the strategy {name!r} cannot take the setting {setting.knob!r} with {models} models "
            f"({type(error).__name__}): give settings and models that belong to it"
        ) from error
    if not 0 <= first.model < models:
        raise PolicyError(f"{name}, {setting.knob}: asks model {first.model} of {models}")


def corner_plain(corner: Corner) -> list[Any]:
    """A corner as plain JSON values; `corner_back` reads it."""
    setting = corner.setting
    return [corner.strategy, setting.knob, dict(setting.parameters), corner.quality, corner.cost]


def corner_back(kept: Sequence[Any]) -> Corner:
    """The corner again."""
    strategy, knob, parameters, quality, cost = kept
    return Corner(strategy, Setting(knob, parameters), quality, cost)


def point_plain(point: OperatingPoint) -> dict[str, Any]:
    """A point as plain JSON values, its name left out; `point_back` reads it."""
    mix = [[s.strategy, s.setting.knob, dict(s.setting.parameters), s.share] for s in point.mix]
    return {"mix": mix, "quality": point.quality, "cost": point.cost}


def point_back(name: str, kept: Plain) -> OperatingPoint:
    """The point again."""
    mix = tuple(Share(s, Setting(knob, p), share) for s, knob, p, share in kept["mix"])
    return OperatingPoint(name, mix, kept["quality"], kept["cost"])


def expectations(log: Log, prediction: Prediction, reference: str) -> dict[str, Any]:
    """What to expect of each model, measured on the calibration part, for an alarm to watch.

    Per model the mean quality, the mean drop against the reference, the mean cost and the mean
    predicted quality, with the number of queries they rest on.

    Args:
        log: complete rows that fitted nothing.
        prediction: of these rows.
        reference: the model whose quality is to be kept.
    """
    column = log.model(reference)
    drop = log.quality[:, [column]] - log.quality
    return {
        "queries": len(log),
        "models": {
            name: {
                "quality": float(log.quality[:, m].mean()),
                "drop": float(drop[:, m].mean()),
                "cost": float(log.cost[:, m].mean()),
                "predicted_quality": float(prediction.quality[:, m].mean()),
            }
            for m, name in enumerate(log.models)
        },
    }


def _look(known: Mapping[Any, Any], knob: Knob) -> Any:
    if knob not in known:
        raise InputError(f"no strategy of the policy has the setting {knob!r}: give it as well")
    return known[knob]
