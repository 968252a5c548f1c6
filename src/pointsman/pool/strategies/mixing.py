"""Mixtures of settings: chance sends a share of the queries to one and the rest to another.

Legend: S settings, N queries.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from pointsman.errors import InputError
from pointsman.frontier.points import Frontier, Knob, Outcomes

Shares = Mapping[Knob, float]


def mixture(outcomes: Outcomes, shares: Shares, knob: Knob | None = None) -> Outcomes:
    """What a mixture is expected to do with every query, as outcomes of one setting.

    Per query the quality is the mean over chance, and so is the cost. The mean over queries of
    these is the mixture's expected quality, so a certificate on these outcomes holds for the
    expectation over queries and chance. The drops are fractions even where every answer is right or
    wrong, so `certify` tests them by betting, not by the exact test of whole drops.

    Args:
        outcomes: of the settings, on any part.
        shares: knob to share; the shares are positive and sum to 1, and must not be chosen on the
            part that certifies.
        knob: of the mixture; None: in words, see `words_of`.

    Raises:
        InputError: no share, a knob that is not there, or shares that do not sum to 1.
    """
    check_shares(shares)
    rows = [outcomes.setting(name) for name in shares]
    weights = np.array(list(shares.values()))
    weights = weights / weights.sum()
    quality = (weights[:, None] * outcomes.quality[rows]).sum(axis=0)
    cost = (weights[:, None] * outcomes.cost[rows]).sum(axis=0)
    return replace(
        outcomes,
        knobs=(words_of(shares) if knob is None else knob,),
        quality=np.clip(quality, 0.0, 1.0)[None],
        cost=cost[None],
    )


def along_the_hull(validation: Outcomes, steps: int = 4) -> list[dict[Knob, float]]:
    """Settings at the corners of the hull, and mixtures between them, from dear to cheap.

    Candidates for a certificate whose order and weights are fixed on the validation part: between
    two corners a mixture may keep the promise where the cheaper corner does not.

    Args:
        validation: outcomes of the settings.
        steps: an edge is cut into so many equal parts.

    Raises:
        InputError: fewer than one step.
    """
    if steps < 1:
        raise InputError(f"an edge of the hull is cut into at least 1 part, got {steps}")
    corners = Frontier.from_outcomes("hull", validation).hull().points[::-1]
    found: list[dict[Knob, float]] = [{corners[0].knob: 1.0}]
    for dear, cheap in pairwise(corners):
        shares = [step / steps for step in range(1, steps)]
        found += [{dear.knob: 1 - share, cheap.knob: share} for share in shares]
        found.append({cheap.knob: 1.0})
    return found


def check_shares(shares: Shares) -> None:
    """Refuse shares that are no distribution.

    Raises:
        InputError: none, a share that is not positive, or a sum other than 1.
    """
    values = list(shares.values())
    total = sum(values)
    if not values or not all(value > 0 for value in values) or abs(total - 1) > 1e-9:
        raise InputError(
            f"the shares of a mixture are positive and sum to 1, got {values} (sum {total:.6g})"
        )


def words_of(shares: Shares) -> str:
    """Such as "70% linear: price 2 + 30% linear: price 9"."""
    if len(shares) == 1:
        return str(next(iter(shares)))
    return " + ".join(f"{share:.4%} {knob}" for knob, share in shares.items())
