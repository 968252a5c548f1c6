"""Short or long reasoning for each problem, learned from pairs of which one was worth it.

Li et al., "EconProver: Towards More Economical Test-Time Scaling for Automated Theorem Proving"
(2025, arXiv 2509.12603): one prover has a mode that writes a proof at once and one that reasons at
length first, at many times the tokens. It learns by direct preference optimisation which to take:

    short is preferred where it proves the problem, long where only long does

and where neither does there is nothing to prefer. The price of an attempt is all that was written,
not one.

Where we depart from the paper: the policy over the two modes is a small network on features of the
problem, where the paper trains the prover itself; how its pairs were mined is not known in detail,
and the rule above is the natural one. A threshold on the probability that long is needed gives one
fit a whole range of prices.

Legend: N problems, D features.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.float64]
SHORT, LONG = 0, 1


class Pairs(NamedTuple):
    """Problems of which one mode is preferred: `rows` (n,) and `chosen` (n,), SHORT or LONG."""

    rows: npt.NDArray[np.int64]
    chosen: npt.NDArray[np.int64]


def mine_pairs(proved: npt.ArrayLike) -> Pairs:
    """Which mode to prefer on which problem.

    Args:
        proved: (N, 2) share of attempts that succeeded in short and in long mode, in [0, 1]; NaN
            where a mode was not tried, which leaves the problem out. A mode proves a problem if at
            least half of its attempts do.

    Raises:
        InputError: another shape, or shares out of range.
    """
    shares = np.asarray(proved, dtype=np.float64)
    if shares.ndim != 2 or shares.shape[1] != 2 or (shares < 0).any() or (shares > 1).any():
        raise InputError(
            "proved is (problems, 2): the share of attempts that succeeded in short and in long "
            f"mode, in [0, 1], got {shares.shape}"
        )
    does = shares >= 0.5
    rows = np.flatnonzero(does.any(axis=1) & ~np.isnan(shares).any(axis=1))
    return Pairs(rows, np.where(does[rows, SHORT], SHORT, LONG))


class ModeSwitch:
    """Probability that a problem needs long reasoning, and the choice that follows from it.

    A policy is the softmax over the two modes of a network with one hidden layer; its reference,
    before any training, holds both modes for equally likely.

    Args:
        beta: of the preference loss: large keeps the policy near its reference.
        hidden: units; 0 makes the policy linear.
        updates: of AdamW, on all pairs.
        rate: of learning.
        decay: of the weights.
        seed: of the first weights.

    Attributes:
        network_: features to the logit of long against short.
        pairs_: how many problems preferred short, and how many long.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        hidden: int = 16,
        updates: int = 300,
        rate: float = 0.02,
        decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.beta = beta
        self.hidden = hidden
        self.updates = updates
        self.rate = rate
        self.decay = decay
        self.seed = seed

    def fit(self, x: npt.ArrayLike, proved: npt.ArrayLike) -> Self:
        """Learn from problems that both modes tried.

        Args:
            x: (N, D) features.
            proved: (N, 2), see `mine_pairs`.

        Raises:
            InputError: shapes that do not fit, or pairs that all prefer one mode.
        """
        import torch
        from torch.nn.functional import logsigmoid

        from pointsman.learn.preference import direct_preference

        rows, chosen = mine_pairs(proved)
        features = _features(x)
        if len(features) != len(np.asarray(proved)):
            raise InputError(f"{len(features)} problems need as many rows of `proved`")
        long = torch.as_tensor(chosen == LONG)
        self.pairs_ = (int((~long).sum()), int(long.sum()))
        if 0 in self.pairs_:
            raise InputError(
                f"{self.pairs_[0]} problems prefer short and {self.pairs_[1]} long: with one mode "
                "for all there is nothing to switch"
            )
        self._mean, self._scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        self.network_ = self._network(features.shape[1])
        inputs = self._inputs(features[rows])
        sign = long.to(inputs.dtype) * 2 - 1  # the logit of long, seen from what was chosen
        half = inputs.new_full((len(rows),), float(np.log(0.5)))
        optimiser = torch.optim.AdamW(
            self.network_.parameters(), self.rate, weight_decay=self.decay
        )
        for _ in range(self.updates):
            logit = sign * self.network_(inputs).squeeze(1)
            loss = direct_preference(
                logsigmoid(logit), logsigmoid(-logit), half, half, beta=self.beta
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return self

    def needs_long(self, x: npt.ArrayLike) -> Array:
        """(N,) probability that long is preferred: sigmoid of beta times the policy's logit."""
        import torch

        with torch.no_grad():
            logit = self.network_(self._inputs(_features(x))).squeeze(1)
        found: Array = torch.sigmoid(self.beta * logit).numpy()
        return found

    def choose(self, x: npt.ArrayLike, threshold: float = 0.5) -> npt.NDArray[np.int64]:
        """(N,) LONG where it is likelier needed than the threshold, else SHORT.

        Args:
            x: (N, D) features.
            threshold: 0 always reasons at length, 1 never does; 0.5 is the policy's own choice.
        """
        return np.where(self.needs_long(x) > threshold, LONG, SHORT).astype(np.int64)

    def _network(self, width: int) -> Any:
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.hidden == 0:
                return nn.Linear(width, 1, dtype=torch.float64)
            return nn.Sequential(
                nn.Linear(width, self.hidden, dtype=torch.float64),
                nn.Tanh(),
                nn.Linear(self.hidden, 1, dtype=torch.float64),
            )

    def _inputs(self, features: Array) -> "Tensor":
        import torch

        return torch.as_tensor((features - self._mean) / self._scale)


def _features(x: npt.ArrayLike) -> Array:
    features = np.asarray(x, dtype=np.float64)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise InputError(f"features must be finite and (problems, features), got {features.shape}")
    return features
