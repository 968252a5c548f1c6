"""The knob of a cascade as text."""

import math
from collections.abc import Sequence
from itertools import pairwise

from pointsman.errors import InputError
from pointsman.frontier.points import Knob


def parse_knob(knob: Knob) -> tuple[str, float]:
    """("epsilon" or "threshold", its value); a bare number is a threshold."""
    name, _, text = knob.partition("=") if isinstance(knob, str) else ("threshold", "", str(knob))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name not in ("epsilon", "threshold") or math.isnan(value):
        raise InputError(
            f'a knob of a cascade is "epsilon=0.02", "threshold=0.9" or a number, got {knob!r}'
        )
    return name, value


def check_order(knobs: Sequence[Knob]) -> None:
    """Refuse knobs that go from cheap to safe, which a certified pick would test the wrong way."""
    parsed = [parse_knob(knob) for knob in knobs]
    for name, sign in (("threshold", -1), ("epsilon", 1)):
        values = [sign * value for kind, value in parsed if kind == name]
        if any(a > b for a, b in pairwise(values)):
            raise InputError(
                f"knobs go from the safest to the cheapest: "
                f"{'descending thresholds' if name == 'threshold' else 'ascending epsilons'}, "
                f"got {list(knobs)}"
            )
