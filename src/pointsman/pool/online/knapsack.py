"""A bandit with a budget: the price of spending rises while too much is spent.

Legend: M arms.
"""

import math
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import (
    Array,
    Bandit,
    Contextual,
    State,
    allowed,
    check_arm,
    check_between,
)
from pointsman.pool.online.keeping import restored, written
from pointsman.pool.saving import Arrays, Plain, inside, nested


class Knapsack(Bandit):
    """Primal-dual bandit with knapsacks: any bandit, charged for what its arms cost.

    With rho = budget / choices, an arm is charged price * (cost_i / rho), cost_i the mean cost of
    the arm so far; after each cost c the price moves to max(0, price + step (c / rho - 1)), at
    most `dearest`. Once the budget is spent only the fallback is chosen.

    Args:
        bandit: learns the rewards.
        budget: to spend in all, above 0.
        choices: how many it is for, at least 1.
        fallback: arm that is chosen once nothing is left: the cheapest, or one that is free.
        step: of the price; None: 1 / sqrt(choices).
        dearest: highest price; one unit of rho is never worth more reward than this.

    Raises:
        InputError: a number out of range; an update without its cost, or with one that is negative.

    Attributes:
        spent: so far.
        price: of one rho, in rewards.

    Source: Badanidiyuru, Kleinberg & Slivkins, "Bandits with Knapsacks" (2013, arXiv 1305.2545);
    the primal-dual form is that of Immorlica et al. (2018, arXiv 1811.11881). Costs are averages
    of all that was seen of an arm, and an arm not yet seen counts as free, which gets it tried.
    """

    def __init__(
        self,
        bandit: Bandit,
        budget: float,
        choices: int,
        *,
        fallback: int = 0,
        step: float | None = None,
        dearest: float = 10.0,
    ) -> None:
        self.bandit = bandit
        self.arms, self.contextual = bandit.arms, bandit.contextual
        self.budget = check_between("budget", budget, 1e-300, 1e300)
        self.choices = int(check_between("choices", choices, 1, math.inf))
        self.fallback = check_arm(fallback, self.arms)
        self.step = check_between(
            "step", self.choices**-0.5 if step is None else step, 0.0, math.inf
        )
        self.dearest = check_between("dearest", dearest, 0.0, math.inf)
        self.spent, self.price = 0.0, 0.0
        self._tried: Array = np.zeros(self.arms)
        self._paid: Array = np.zeros(self.arms)

    @property
    def share(self) -> float:
        """Budget for one choice."""
        return self.budget / self.choices

    def mean_cost(self) -> Array:
        """(M,) mean cost of each arm so far, 0 where it was never tried."""
        mean: Array = self._paid / np.maximum(self._tried, 1)
        return mean

    def probabilities(
        self,
        x: npt.ArrayLike | None = None,
        eligible: npt.ArrayLike | None = None,
        penalty: npt.ArrayLike | None = None,
    ) -> Array:
        """(M,) see `Bandit`; the fallback alone once the budget is spent.

        Raises:
            InputError: the budget is spent and the fallback is not eligible.
        """
        mask = allowed(eligible, self.arms)
        if self.spent >= self.budget:
            if not mask[self.fallback]:
                raise InputError(
                    f"the budget of {self.budget:g} is spent and the fallback, arm "
                    f"{self.fallback}, is not eligible"
                )
            only = np.zeros(self.arms)
            only[self.fallback] = 1.0
            return only
        charged = self.price * self.mean_cost() / self.share
        if penalty is not None:
            charged = charged + np.asarray(penalty, dtype=np.float64)
        return self.bandit.probabilities(x, mask, charged)

    def expected(self, x: npt.ArrayLike | None) -> Array:
        """(M,) what the bandit inside expects of each arm at a context; only contextual ones do."""
        return cast(Contextual, self.bandit).expected(x)

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
        """See `Bandit`; the cost must be given."""
        if cost is None or not 0.0 <= cost < math.inf:
            raise InputError(
                f"a bandit with a budget needs the cost of each call, at least 0, got {cost!r}"
            )
        self._tried[check_arm(arm, self.arms)] += 1
        self._paid[arm] += cost
        self.spent += cost
        moved = self.price + self.step * (cost / self.share - 1.0)
        self.price = min(max(moved, 0.0), self.dearest)
        self.bandit.update(arm, reward, x, cost, at=at, propensity=propensity)

    def forget(self, arm: int | None = None) -> None:
        """Start again with the rewards and the costs of an arm; what was spent stays spent."""
        at = slice(None) if arm is None else arm
        self._tried[at] = 0.0
        self._paid[at] = 0.0
        self.bandit.forget(arm)

    def to_state(self) -> State:
        """See `Saved`."""
        plain, arrays = nested({"bandit": written(self.bandit)})
        names = ("budget", "choices", "fallback", "step", "dearest", "spent", "price")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**own, "parts": plain}, {
            **arrays,
            "tried": self._tried.copy(),
            "paid": self._paid.copy(),
        }

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`."""
        from pointsman.pool.online.kinds import BANDITS  # the list names this class as well

        bandit = restored(BANDITS, plain["parts"]["bandit"], inside("bandit", arrays))
        names = ("budget", "choices", "fallback", "step", "dearest")
        found = cls(bandit, **{name: plain[name] for name in names})
        found.spent, found.price = plain["spent"], plain["price"]
        found._tried = np.array(arrays["tried"], dtype=np.float64)
        found._paid = np.array(arrays["paid"], dtype=np.float64)
        return found
