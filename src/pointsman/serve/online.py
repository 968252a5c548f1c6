"""The point `pointsman:online`: a bandit that starts from the policy's predictions and learns.

It is not certified: nothing bounds what it may lose. What is learned is what the predictions miss,

    reward = quality by feedback - price x cost
    residual = reward - (predicted quality - price x predicted cost), of the same model

so an arm that nothing is known of is worth what the policy expects of it, and forgetting leads back
to that. The context of a query is the predicted worth of every model, and each model has a linear
regression of its residual on it (`pool.online.linear`).

The price is that of the default point: how much quality the hull of the policy gains there for
another US$.

Legend: M models.
"""

from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.decision import OperatingPoint, Share
from pointsman.pool.online.bandit import Array
from pointsman.pool.online.linear import LinearThompson, LinearUpperConfidence
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies.single import Single
from pointsman.serve.config import Serving

if TYPE_CHECKING:
    from pointsman.pool.policy import PoolPolicy

NAME = "online"
LEAST = 0.02  # share that is spread evenly where the configuration explores less
TRUST = 20.0  # weight of the policy's predictions, in feedbacks
DISCOUNT = 0.999  # share of its weight that feedback keeps with every further one


class Online:
    """The bandit of one policy.

    Args:
        policy: whose predictions it starts from.
        serving: `online` says which bandit, `point` at which price.

    Attributes:
        price: quality that a US$ must bring.
        part: name under which its state is kept, apart from that of another kind or price.
        point: of the policy, by whose strategy qualities and costs are predicted.

    Raises:
        InputError: the policy counts costs in another unit than US$.
    """

    def __init__(self, policy: "PoolPolicy", serving: Serving) -> None:
        if policy.unit not in ("US$", "USD", "$"):
            raise InputError(
                f"online needs a policy whose costs are US$, as its ledger has them, got "
                f"{policy.unit!r}: leave [policy] online out"
            )
        self.models = policy.models
        self.kind = serving.online
        self.explore = max(serving.explore, LEAST)
        self.price = price_at(policy, policy.point(serving.point).cost)
        self.part = f"{NAME} {self.kind} {self.price:.6g}"
        corners = [c for c in policy.points if c.strategy != Single.name] or policy.points
        corner = corners[-1]
        share = Share(corner.strategy, corner.setting, 1.0)
        self.point = OperatingPoint(NAME, (share,), corner.quality, corner.cost)
        self._lock = Lock()  # an encoder that is slow has requests decided in threads
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.bandit = self._kind()(
            len(self.models),
            len(self.models),
            ridge=TRUST,
            discount=DISCOUNT,
            explore=self.explore,
        )

    def restore(self, plain: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a state that `bandit.to_state` gave."""
        self.bandit = self._kind().from_state(plain, arrays)
        self.bandit.explore = self.explore

    def worth(self, prediction: Prediction) -> Array:
        """(M,) what the policy expects of every model at the price."""
        found: Array = prediction.quality[0] - self.price * prediction.cost[0]
        return found

    def choose(
        self, worth: Array, able: list[int], chance: Callable[[], float]
    ) -> tuple[int, Array]:
        """A model for a query, and the probability of each.

        Args:
            worth: (M,) see `worth`.
            able: models that can take the request.
            chance: draws from [0, 1).
        """
        with self._lock:
            probabilities = self.bandit.probabilities(worth, able, penalty=-worth)
        edges = np.cumsum(probabilities)
        drawn = int(np.searchsorted(edges, chance() * edges[-1], side="right"))
        return min(drawn, int(np.flatnonzero(probabilities)[-1])), probabilities

    def context(self, prediction: Prediction) -> dict[str, float]:
        """What has to be logged so that feedback can be learned from."""
        return dict(zip(self.models, self.worth(prediction).tolist(), strict=True))

    def learn(self, row: Mapping[str, Any]) -> None:
        """Learn from a row of the served log with feedback, if it tells what is needed."""
        context, answered = row.get("context"), row.get("answered")
        if context is None or answered not in self.models or row.get("cost") is None:
            return
        if set(context) != set(self.models) or row.get("how") in ("cascade", "substitute"):
            return
        x = np.array([context[name] for name in self.models])
        reward = float(row["quality"]) - self.price * float(row["cost"])
        arm = self.models.index(answered)
        with self._lock:
            self.bandit.update(arm, reward - float(x[arm]), x)

    def _kind(self) -> type[LinearThompson] | type[LinearUpperConfidence]:
        return LinearThompson if self.kind == "thompson" else LinearUpperConfidence


def price_at(policy: "PoolPolicy", cost: float) -> float:
    """Quality that another US$ brings on the hull of a policy, at a cost per query.

    Beyond the ends it is that of the last segment there; 0 where the hull is one point.
    """
    corners = policy.points
    if len(corners) < 2:
        return 0.0
    at = next((i for i, c in enumerate(corners) if c.cost >= cost), len(corners) - 1)
    low, high = corners[max(at, 1) - 1], corners[max(at, 1)]
    return (high.quality - low.quality) / (high.cost - low.cost)
