"""What a bandit is: it chooses an arm with a probability that is written down, and learns.

An arm is a model of a pool, a route of a network, a parameter of a solver. Every bandit can tell
the probability of each arm before it draws (`probabilities`), so what is logged is exactly what was
drawn from, and estimates from the log are unbiased where every arm that matters has a chance.

Legend: M arms, D features of a context, G points of a grid.
"""

from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.saving import Arrays, Plain

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
State = tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]

TINY = 1e-300  # keeps logarithms of distribution functions finite


class Choice(NamedTuple):
    """An arm that was drawn.

    Args:
        arm: its number.
        propensity: probability with which it was drawn, in (0, 1]; to be logged.
    """

    arm: int
    propensity: float


class Bandit(Protocol):
    """Chooses among M arms and learns from rewards, which may come late and in any order.

    Attributes:
        arms: M.
        contextual: whether the context changes the choice.
    """

    arms: int
    contextual: bool

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) probability of each arm; they sum to one and are 0 where an arm is not eligible.

        Args:
            x: (D,) context; those that are not contextual leave it aside.
            eligible: (M,) bool or numbers of arms that may be chosen; None: all.
            penalty: (M,) taken off what each arm is worth, such as a price times its cost.
        """
        ...

    def choose(
        self, x: npt.ArrayLike | None, eligible: npt.ArrayLike | None, rng: np.random.Generator
    ) -> Choice:
        """Draw an arm; takes one number from `rng` and changes nothing."""
        return draw(self.probabilities(x, eligible), rng)

    def update(
        self,
        arm: int,
        reward: float,
        x: npt.ArrayLike | None = None,
        cost: float | None = None,
        *,
        at: float | None = None,
        propensity: float | None = None,
    ) -> None:
        """Learn from one reward.

        Args:
            arm: that was chosen.
            reward: usually in [0, 1], higher is better.
            x: (D,) context of the choice.
            cost: of the call; only those with a budget read it.
            at: when the choice was made, on any clock that moves by about one a choice; None: one
                tick after the latest. Forgetting counts from it, so late rewards fall in place.
            propensity: that the choice had; those that weigh by it take today's where it is None.
        """
        ...

    def forget(self, arm: int | None = None) -> None:
        """Start again with one arm, or with all."""
        ...

    def to_state(self) -> State:
        """Keywords and what was learned, see `Saved`."""
        ...

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """The same bandit again: it goes on exactly as the other would have."""
        ...


class Contextual(Bandit, Protocol):
    """A bandit that can say what it expects of each arm at a context."""

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) expected reward of each arm."""
        ...


def allowed(eligible: npt.ArrayLike | None, arms: int) -> Mask:
    """(M,) bool of the eligible arms, from a mask, from their numbers, or all for None.

    Raises:
        InputError: no arm, an arm that is not there, or a mask of another length.
    """
    if eligible is None:
        return np.ones(arms, dtype=bool)
    given = np.asarray(eligible)
    if given.dtype == bool:
        if given.shape != (arms,):
            raise InputError(f"a mask of eligible arms must be ({arms},), got {given.shape}")
        mask = given
    else:
        numbers = given.astype(np.int64).ravel()
        if ((numbers < 0) | (numbers >= arms)).any():
            raise InputError(f"eligible arms are numbers from 0 to {arms - 1}, got {eligible!r}")
        mask = np.zeros(arms, dtype=bool)
        mask[numbers] = True
    if not mask.any():
        raise InputError("at least one arm must be eligible, got none")
    return mask


def draw(probabilities: Array, rng: np.random.Generator) -> Choice:
    """One arm drawn from (M,) probabilities, with one number of the generator."""
    edges = np.cumsum(probabilities)
    arm = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    arm = min(arm, int(np.flatnonzero(probabilities)[-1]))  # a draw rounded up to the last edge
    return Choice(arm, float(probabilities[arm]))


def mixed(probabilities: Array, mask: Mask, explore: float) -> Array:
    """(M,) with a share `explore` of the choices spread evenly over the eligible arms."""
    even: Array = mask / mask.sum()
    return (1.0 - explore) * probabilities + explore * even


def greedy(scores: Array, mask: Mask, explore: float = 0.0) -> Array:
    """(M,) probabilities of taking the best score; arms that tie share it evenly."""
    best = mask & (scores == scores[mask].max())
    return mixed(best / best.sum(), mask, explore)


def thompson(mass_MG: Array, mask: Mask, explore: float = 0.0) -> Array:
    """(M,) probability that each arm is the best, when arms are worth what their rows say.

    Thompson sampling draws a worth for each arm and takes the largest. Here the probability of
    that is computed instead, with sum_g mass_ig prod_{j != i} F_j(g), so that it can be logged; on
    one point of the grid ties are shared, and the result is scaled to sum to one.

    Args:
        mass_MG: (M, G) probabilities on one ascending grid, rows sum to one.
        mask: (M,) eligible arms.
        explore: see `mixed`.
    """
    mass = mass_MG[mask]
    log_below = np.log(np.maximum(np.cumsum(mass, axis=1) - mass / 2, TINY))
    wins = (mass * np.exp(log_below.sum(axis=0) - log_below)).sum(axis=1)
    probabilities = np.zeros(len(mask))
    probabilities[mask] = wins / wins.sum()
    return mixed(probabilities, mask, explore)


def penalised(worth: Array, penalty: npt.ArrayLike | None) -> Array:
    """(M,) worth less a penalty.

    Raises:
        InputError: a penalty of another shape.
    """
    if penalty is None:
        return worth
    less = np.asarray(penalty, dtype=np.float64)
    if less.shape != worth.shape:
        raise InputError(f"a penalty is one number an arm, {worth.shape}, got {less.shape}")
    return worth - less


def check_arm(arm: int, arms: int) -> int:
    """The arm, if it is one.

    Raises:
        InputError: it is not.
    """
    if not 0 <= arm < arms:
        raise InputError(f"arms are numbered from 0 to {arms - 1}, got {arm!r}")
    return int(arm)


def check_reward(reward: float, *, share: bool = False) -> float:
    """The reward, if it is finite and, with `share`, within [0, 1].

    Raises:
        InputError: it is not.
    """
    value = float(reward)
    if not np.isfinite(value) or (share and not 0.0 <= value <= 1.0):
        rule = "must lie in [0, 1]" if share else "must be finite"
        raise InputError(f"a reward {rule}, got {reward!r}")
    return value


def check_between(name: str, value: float, low: float, high: float) -> float:
    """The number, if it lies in [low, high].

    Raises:
        InputError: it does not.
    """
    if not low <= value <= high:
        raise InputError(f"{name} must lie between {low:g} and {high:g}, got {value!r}")
    return float(value)
