"""The checks that every selection makes of what it is given.

Values are looked at on a CPU only: on a GPU the look would make the host wait at every step. There
a NaN goes through, and what it does to the route is not promised.
"""

import torch
from torch import Tensor

from pointsman.errors import RouteError


def check_scores(scores: Tensor, name: str = "scores", columns: str = "branches") -> None:
    """Scores (T, E) must be floating point, without NaN (on a CPU) and without +inf (there too).

    Raises:
        RouteError: the rule that was broken, with the first row and column.
    """
    if scores.ndim != 2:
        raise RouteError(
            f"{name} must have shape (inputs, {columns}), got {tuple(scores.shape)}: "
            "flatten leading axes with .flatten(0, -2)"
        )
    check_values(scores, name)


def check_values(values: Tensor, name: str) -> None:
    """Any tensor must be floating point, without NaN and +inf (on a CPU).

    Raises:
        RouteError: the rule that was broken, with the first place.
    """
    if not values.dtype.is_floating_point:
        raise RouteError(f"{name} must be floating point, got {values.dtype}: use .float()")
    if values.device.type != "cpu":
        return
    values = values.detach()
    fine = values < torch.inf  # false for NaN and for +inf
    if not fine.all():
        place = tuple(int(axis) for axis in (~fine).nonzero()[0])
        where = "row {}, column {}".format(*place) if len(place) == 2 else f"position {place[0]}"
        raise RouteError(
            f"{name} must be numbers below infinity (-inf marks a branch as not eligible), "
            f"got {float(values[place])} at {where}"
        )


def check_k(k: int, num_branches: int) -> None:
    """At least one branch and at most all of them.

    Raises:
        RouteError: k is not a whole number in 1..E.
    """
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= num_branches:
        raise RouteError(
            f"k must be a whole number from 1 to the number of branches, {num_branches}, got {k!r}"
        )


def check_positive(value: float, name: str) -> None:
    """A finite number above zero.

    Raises:
        RouteError: it is not.
    """
    if not 0 < value < float("inf"):
        raise RouteError(f"{name} must be a finite number above 0, got {value!r}")


def check_count(value: int, name: str, least: int) -> None:
    """A whole number of at least `least`.

    Raises:
        RouteError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RouteError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_word(name: str, word: str, known: tuple[str, ...]) -> None:
    """One of the known words.

    Raises:
        RouteError: it is not.
    """
    if word not in known:
        raise RouteError(f"{name} must be one of {', '.join(known)}, got {word!r}")


def check_bias(bias: Tensor, num_branches: int) -> None:
    """One number a branch, floating point, without NaN and +inf (on a CPU).

    Raises:
        RouteError: another shape or type, or such a value.
    """
    if bias.shape != (num_branches,):
        raise RouteError(
            f"the bias must have shape (branches,) = ({num_branches},), got {tuple(bias.shape)}"
        )
    check_values(bias, "the bias")
