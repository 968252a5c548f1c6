"""A pick that keeps its promise: the cheapest setting whose loss of quality is certified.

The promise of `certify`, at confidence c: with probability at least c over the calibration inputs,
the mean drop of the picked setting on future inputs of the same kind is at most `max_drop`; or,
where nothing is certified, at most the `promised_drop` that is stated instead.

Many settings may be tried, of many policies: they are tested one after the other in an order fixed
beforehand, each at the full level 1 - c, and the first that fails ends it (fixed-sequence testing,
as in Learn then Test, Angelopoulos et al. 2021, 2110.01052). A bad setting can only be accepted
after the first bad one in the order has been, and that alone has probability at most 1 - c; so all
accepted settings hold at once and any of them may be picked. An order found on a separate
validation set, along its Pareto settings, follows Pareto Testing (Laufer-Goldshtein et al. 2022,
2210.07913); `safest_first` makes one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_args

import numpy as np

from pointsman.errors import InputError
from pointsman.frontier.bounds import (
    METHODS,
    Array,
    Method,
    inputs_needed,
    is_integral,
    p_value,
    upper_bound,
)
from pointsman.frontier.points import Frontier, Knob, Outcomes, Point

CAUTION = 2.0  # standard errors added to a mean drop where settings are ordered by risk


@dataclass(frozen=True)
class Certificate:
    """What was tested and what may be promised.

    Args:
        certified: whether the setting's mean drop is certified to be at most max_drop.
        max_drop: the limit that was asked for.
        confidence: probability of the promise.
        method: the method that decided, never "auto".
        knob: the setting that the certificate is about.
        inputs: number of calibration inputs.
        tested: how many settings were tested before the sequence ended.
        accepted: how many of them were certified.
        p_value: of this setting.
        promised_drop: largest mean drop that is promised at this confidence: max_drop when
            certified, else the upper bound of the first setting.
        observed_drop: mean drop on the calibration inputs.
        more_inputs: about how many further inputs would certify it; 0 when certified, None when no
            number helps (the observed drop is not below max_drop) or more than a million would.
        by_method: p-value of each method that applies, to compare methods. Only `method` counts:
            the smallest of several p-values is not a p-value.
    """

    certified: bool
    max_drop: float
    confidence: float
    method: str
    knob: Knob
    inputs: int
    tested: int
    accepted: int
    p_value: float
    promised_drop: float
    observed_drop: float
    more_inputs: int | None
    by_method: dict[str, float]

    def words(self) -> str:
        """The certificate in a few plain sentences."""
        sure = f"with {self.confidence * 100:g}% confidence"
        measured = f"On {self.inputs:,} calibration inputs {_lost(self.observed_drop)}."
        if self.certified:
            count = "1 setting" if self.tested == 1 else f"{self.tested} settings"
            return (
                f"Certified: {sure}, {self.knob!r} loses at most {_share(self.max_drop)} of "
                f"quality on average against the reference. {measured} {count} tested one by "
                f"one, {self.accepted} accepted; all accepted settings keep the limit together."
            )
        promise = (
            f"No setting is certified to lose at most {_share(self.max_drop)}. What can be "
            f"promised {sure}: {self.knob!r}, the first setting tested, loses at most "
            f"{_share(self.promised_drop)} on average."
        )
        if self.promised_drop >= 1.0:
            promise = (
                f"No setting is certified to lose at most {_share(self.max_drop)}, and the "
                f"calibration inputs are too few for any promise about {self.knob!r}, the first "
                "setting tested."
            )
        if self.observed_drop >= self.max_drop:
            why = (
                "That itself reaches the limit, so more inputs would not help: allow a larger "
                "drop, or put a safer setting first."
            )
        elif self.more_inputs is None:
            why = "That is so close to the limit that more than a million inputs would be needed."
        else:
            why = (
                f"The inputs are too few: about {self.more_inputs:,} more would do if their "
                "drops are like these."
            )
        return f"{promise} {measured} {why}"

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; keys it does not know are left aside.

        Raises:
            InputError: a field is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in data]
        if missing:
            raise InputError(
                f"a certificate needs every field, missing are {', '.join(missing)}: "
                "write it again with to_dict()"
            )
        return cls(**{field.name: data[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Pick:
    """The chosen setting with its means on the calibration inputs and its certificate.

    `saved` is the share of the reference's mean cost that is saved; 0.0 where the reference is
    free.
    """

    knob: Knob
    quality: float
    cost: float
    saved: float
    certificate: Certificate


def fixed_sequence(
    outcomes: Outcomes,
    *,
    max_drop: float,
    confidence: float,
    order: Sequence[Knob],
    method: Method = "auto",
) -> tuple[int, list[float]]:
    """Test settings one after the other at level 1 - confidence; stop at the first that fails.

    Args:
        outcomes: of the settings, on calibration inputs.
        max_drop: limit on the mean drop, in [0, 1).
        confidence: in (0, 1); holds for all accepted settings together.
        order: knobs of the settings to test, safest first. It must not depend on these outcomes.
        method: see `p_value`. "auto" is "exact" where every quality of the reference and of every
            setting in the order is 0 or 1, else "betting".

    Returns:
        How many were accepted, and the p-values of those tested (one more, unless all passed).

    Raises:
        InputError: an empty order, a knob twice or unknown, or an argument out of range.
    """
    _check_order(order)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    rows = [outcomes.setting(knob) for knob in order]
    drops = outcomes.drops()
    chosen = _method(outcomes, rows, method)
    p_values: list[float] = []
    for row in rows:
        p_values.append(p_value(drops[row], max_drop, chosen))
        if p_values[-1] > 1.0 - confidence:
            return len(p_values) - 1, p_values
    return len(p_values), p_values


def certify(
    outcomes: Outcomes,
    max_drop: float,
    confidence: float,
    order: Sequence[Knob] | None = None,
    method: Method = "auto",
    *,
    among: Collection[Knob] | None = None,
) -> Pick:
    """The cheapest of the accepted settings, or the first setting with the bound that holds for it.

    Where nothing is accepted, only the first setting of the order has a bound at this confidence,
    and it is stated as `promised_drop`. The whole statement, chain or bound, errs with probability
    at most 1 - confidence:

    - If the first setting truly drops more than max_drop, both errors (accepting it, or stating a
      bound below its true drop) need its p-value at its own true drop to be at most
      1 - confidence, which is one event of that probability.
    - If it does not, a bound below its true drop would be below max_drop, so the setting would have
      been accepted and no bound stated; what is left is the chain, which errs at the first truly
      bad setting with that probability.

    Among the accepted the cheapest by mean calibration cost is picked, the later of equal ones:
    allowed, because the promise covers all accepted settings at once.

    Args:
        outcomes: of the settings, on calibration inputs that chose neither settings nor order.
        max_drop: limit on the mean drop against the reference, in [0, 1).
        confidence: in (0, 1).
        order: knobs to test, safest first, fixed beforehand; default: the order of the knobs.
        method: as in `fixed_sequence`.
        among: the settings that may be picked; all of the order are tested all the same. It may be
            chosen on these outcomes, as the promise covers all accepted settings at once. Where
            none of them is accepted, any accepted one may be picked.

    Raises:
        InputError: as in `fixed_sequence`.
    """
    if order is not None:
        _check_order(order)
    sequence = tuple(outcomes.knobs if order is None else order)
    accepted, p_values = fixed_sequence(
        outcomes, max_drop=max_drop, confidence=confidence, order=sequence, method=method
    )
    rows = [outcomes.setting(knob) for knob in sequence]
    costs = outcomes.cost.mean(axis=1)
    allowed = [at for at in range(accepted) if among is None or sequence[at] in among]
    allowed = allowed or list(range(accepted))
    place = min(allowed, key=lambda at: (costs[rows[at]], -at)) if allowed else 0
    row = rows[place]
    chosen = _method(outcomes, rows, method)
    certificate = _certificate(
        outcomes,
        row,
        max_drop,
        confidence,
        chosen,
        accepted=accepted,
        tested=len(p_values),
        p=p_values[place],
    )
    reference = float(outcomes.reference_cost.mean())
    return Pick(
        knob=sequence[place],
        quality=float(outcomes.quality[row].mean()),
        cost=float(costs[row]),
        saved=1.0 - float(costs[row]) / reference if reference > 0 else 0.0,
        certificate=certificate,
    )


def safest_first(validation: Outcomes) -> tuple[Knob, ...]:
    """An order to test settings in, found on a validation set: the safest first, cheaper ones next.

    A setting's risk is its mean drop plus two standard errors, so that one which merely was lucky
    on few inputs does not lead. Settings that another beats in risk and cost are left out: testing
    what nobody would pick only adds chances to end the sequence. The validation inputs must be
    others than those that certify.

    Where we depart from Pareto Testing (2210.07913), which takes the Pareto settings by mean and
    orders them by p-value: with the risk in both places one order serves every limit.
    """
    drops = validation.drops()
    risk = drops.mean(axis=1) + CAUTION * standard_error(drops)
    means = zip(validation.knobs, -risk, validation.cost.mean(axis=1), strict=True)
    points = tuple(Point(knob, float(safety), float(cost)) for knob, safety, cost in means)
    kept = Frontier("validation", points, validation.unit).pareto().points
    return tuple(point.knob for point in reversed(kept))


def standard_error(drops: Array) -> Array:
    """(S,) standard error of the mean of each row (S, N), never zero.

    One loss and one win more than seen are imagined, because a setting that changed nothing on few
    inputs may still change something on the next.
    """
    inputs = drops.shape[1]
    error: Array = np.sqrt((drops.var(axis=1) * inputs + 2) / inputs) / np.sqrt(inputs)
    return error


def _certificate(
    outcomes: Outcomes,
    row: int,
    max_drop: float,
    confidence: float,
    method: Method,
    *,
    accepted: int,
    tested: int,
    p: float,
) -> Certificate:
    drops: Array = outcomes.drops()[row]
    by_method: dict[str, float] = {
        name: p if name == method else p_value(drops, max_drop, name)
        for name in METHODS
        if name != "exact" or is_integral(drops)
    }
    promised = float(max_drop)
    more: int | None = 0
    if not accepted:
        promised = upper_bound(drops, confidence, method)
        needed = inputs_needed(drops, max_drop, confidence, method)
        more = None if needed is None else max(1, needed - len(outcomes))
    return Certificate(
        certified=accepted > 0,
        max_drop=float(max_drop),
        confidence=float(confidence),
        method=method,
        knob=outcomes.knobs[row],
        inputs=len(outcomes),
        tested=tested,
        accepted=accepted,
        p_value=p,
        promised_drop=promised,
        observed_drop=float(drops.mean()),
        more_inputs=more,
        by_method=by_method,
    )


def _method(outcomes: Outcomes, rows: Sequence[int], method: Method) -> Method:
    """The method for every setting of a sequence alike: it is a property of the metric."""
    if method != "auto":
        if method not in get_args(Method):
            raise InputError(f"no method {method!r}: choose auto or one of {', '.join(METHODS)}")
        return method
    right_or_wrong = all(
        bool(np.isin(quality, (0.0, 1.0)).all())
        for quality in (outcomes.reference_quality, outcomes.quality[list(rows)])
    )
    return "exact" if right_or_wrong else "betting"


def _check_order(order: Sequence[Knob]) -> None:
    if isinstance(order, str) or len(order) == 0:
        raise InputError(
            f"the order must be a sequence of at least one knob, got {order!r}: "
            "give the settings to test, safest first"
        )
    if len(set(order)) != len(order):
        twice = next(knob for place, knob in enumerate(order) if knob in order[:place])
        raise InputError(f"the order must name each setting once, {twice!r} comes twice")


def _share(value: float) -> str:
    """A share of quality in percent, such as 0.42%, rounded up in the fourth digit shown."""
    scaled = value * 100
    digits = 2 if scaled < 10 else 1
    shown = np.ceil(scaled * 10**digits - 1e-9) / 10**digits
    return f"{shown:.{digits}f}".rstrip("0").rstrip(".") + "%"


def _lost(drop: float) -> str:
    if drop > 0:
        return f"it lost {drop * 100:.3g}%"
    return f"it gained {-drop * 100:.3g}%" if drop < 0 else "it lost nothing"
