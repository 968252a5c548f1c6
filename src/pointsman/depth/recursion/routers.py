"""Who goes through the shared stack once more: the routers of a recursion.

A router is asked before each recursion about the tokens that took the last one, and names those
that take the next, with how much of the change is added to each. A token that was left out never
comes back, so the set of tokens shrinks from recursion to recursion.

After Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation" (2025, arXiv 2507.10524). What they leave open or we do otherwise is said at each.

Legend: n sequences, S tokens of each, D width, R recursions, a tokens asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.route import Route
from pointsman.select import expert_choice


@dataclass(frozen=True, eq=False)
class Chosen:
    """Who takes a recursion.

    Attributes:
        active: (n, S) bool, a subset of those asked about.
        weights: (n, S) share of the stack's change that each takes; read where active.
        loss: scalar, to be added to the training loss.
        memory: handed back to the router at the next recursion of the same tokens.
    """

    active: Tensor
    weights: Tensor
    loss: Tensor
    memory: Any = None


@runtime_checkable
class DepthRouter(Protocol):
    """Chooses the tokens of each recursion. Implementations are `nn.Module`s.

    In evaluation mode the choice for a token may depend on that token alone (its state, and what
    was decided about it before), so that decoding step by step gives what one pass over everything
    gives.

    Attributes:
        recursions: R, the most that a token takes.
        everyone_first: whether every token takes the first recursion.
    """

    recursions: int
    everyone_first: bool

    def choose(self, recursion: int, x: Tensor, alive: Tensor, memory: Any) -> Chosen:
        """Who takes this recursion.

        Args:
            recursion: from 0 to R - 1.
            x: (n, S, D) states.
            alive: (n, S) bool, who took the one before; all at the first.
            memory: of the recursion before; None at the first.
        """
        ...


class EveryToken(nn.Module):
    """Every token takes all recursions, whole: the plain recursive transformer."""

    everyone_first = True

    def __init__(self, recursions: int) -> None:
        super().__init__()
        self.recursions = _count(recursions)

    def choose(self, recursion: int, x: Tensor, alive: Tensor, memory: Any) -> Chosen:
        """All of them, at weight 1."""
        return Chosen(alive, x.new_ones(alive.shape), x.new_zeros(()))


class ExpertChoice(nn.Module):
    """Each recursion takes the tokens with the largest gates; in evaluation, those above 1/2.

        g = sigmoid(theta_r · x + b_r)

    While training, recursion r takes the `capacities[r] * S` largest gates of a sequence among the
    tokens that are left. That looks at later tokens, so it cannot be decoded with: a binary cross
    entropy presses the gates of the chosen above 1/2 and those of the others below, and in
    evaluation a token goes on if its own gate exceeds `threshold`. Where a capacity equals the one
    before (1 before the first) there is nothing to choose and all go on.

    Where we depart: the paper scales gates by 0.1 and adds the stack's output to the token; here
    the gate weighs the stack's change (see `MixtureOfRecursions`), unscaled.

    Args:
        width: D.
        capacities: for each of the R recursions, the share of the tokens that takes it, in (0, 1]
            and falling. The paper's: 1, 2/3, 1/3.
        pressure: of the binary cross entropy. The paper trains long on 1e-3; here training is
            short.
        threshold: that a gate must exceed in evaluation. May be set at any time: lower is deeper.

    Raises:
        InputError: capacities out of range or rising.
    """

    def __init__(
        self,
        width: int,
        capacities: Sequence[float],
        *,
        pressure: float = 0.01,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.capacities = _capacities(capacities)
        self.recursions = len(self.capacities)
        self.everyone_first = self.capacities[0] == 1
        self.pressure, self.threshold = pressure, threshold
        self.warmth = 1.0
        self.gates = _gates(width, self.recursions)

    def warm_up(self, progress: float) -> None:
        """Let the capacities fall from 1 at progress 0 to their own at progress 1 (and beyond).

        The bound of a recursion stays above that of the next, so nothing else changes.
        """
        self.warmth = min(max(progress, 0.0), 1.0)

    def choose(self, recursion: int, x: Tensor, alive: Tensor, memory: Any) -> Chosen:
        """The largest gates while training, those above the threshold in evaluation."""
        logits = _of_alive(self.gates[recursion], x, alive)
        weights, none = logits.sigmoid(), x.new_zeros(())
        if not _choosy(self.capacities, recursion):
            return Chosen(alive, weights, none)
        if not self.training:
            return Chosen(alive & (weights > self.threshold), weights, none)
        share = 1 - self.warmth * (1 - self.capacities[recursion])
        capacity = max(1, round(share * x.shape[1]))
        # a sequence is a branch that takes some of its tokens
        active = expert_choice(logits.T, capacity, weigh=torch.sigmoid).mask().T
        pressed = functional.binary_cross_entropy_with_logits(
            logits[alive], active[alive].to(logits.dtype)
        )
        return Chosen(active, weights, self.pressure * pressed)


class TokenChoice(nn.Module):
    """Each token chooses its depth once, from its state before the first recursion.

        g = softmax(theta · x),  depth = argmax(g + b),  weight g[depth] at each of its recursions

    Causal as it is; what it needs instead is balance, or all tokens choose one depth. Two ways:
    a loss `balance * sum_i f_i P_i / q_i` with f the shares of the depths, P their mean
    probabilities and q the wanted shares; or, where `rate` is above 0, a bias b that only the
    choice sees, moved by `after_step` against what was chosen too often (Wang et al. 2024, arXiv
    2408.15664).

    Where we depart: the paper adds the first state once, at a token's last recursion; here every
    recursion keeps its residual (see `MixtureOfRecursions`).

    Args:
        width: D.
        recursions: R.
        shares: wanted share of the tokens for the depths 1 to R; None: equal.
        balance: weight of the loss; the paper's is 0.1.
        rate: step of the bias, 0 for none.

    Raises:
        InputError: shares that are not R positive numbers.
    """

    everyone_first = True
    bias: Tensor
    wanted: Tensor

    def __init__(
        self,
        width: int,
        recursions: int,
        *,
        shares: Sequence[float] | None = None,
        balance: float = 0.1,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.recursions = _count(recursions)
        given = [1.0] * recursions if shares is None else list(shares)
        if len(given) != recursions or not all(share > 0 for share in given):
            raise InputError(
                f"each of {recursions} depths needs a wanted share above 0, got {given}"
            )
        self.balance, self.rate = balance, rate
        self.gate = nn.Linear(width, recursions)
        self.register_buffer("wanted", torch.tensor(given) / sum(given))
        self.register_buffer("bias", torch.zeros(recursions))

    def choose(self, recursion: int, x: Tensor, alive: Tensor, memory: Any) -> Chosen:
        """Those whose depth is not reached yet."""
        loss = x.new_zeros(())
        if recursion == 0:
            probabilities: Tensor = self.gate(x).softmax(dim=-1)
            last = (probabilities + self.bias.to(probabilities)).argmax(dim=-1)  # depth - 1
            weights = probabilities.gather(-1, last[..., None]).squeeze(-1)
            memory = (last, weights)
            if self.training:
                chosen = functional.one_hot(last, self.recursions).to(probabilities.dtype)
                share, mean = chosen.flatten(0, 1).mean(dim=0), probabilities.flatten(0, 1).mean(0)
                loss = self.balance * (share * mean / self.wanted.to(mean)).sum()
        last, weights = memory
        return Chosen(alive & (last >= recursion), weights, loss, memory)

    @torch.no_grad()
    def after_step(self, route: Route) -> None:
        """Move the bias against what the tokens of a step chose too often.

        Args:
            route: of `MixtureOfRecursions` on that step.
        """
        depths = route.branches_per_input().clamp(min=1) - 1
        share = torch.bincount(depths, minlength=self.recursions) / max(len(depths), 1)
        self.bias += self.rate * (self.wanted - share.to(self.wanted)).sign()


class RandomTokens(nn.Module):
    """As `ExpertChoice`, but chance names the tokens: what a learned choice has to beat.

    The gates still weigh the change and are learned. In evaluation each token goes on with the
    probability that keeps the capacities in the mean.

    Args:
        width: D.
        capacities: as for `ExpertChoice`.
        seed: of the choices.

    Raises:
        InputError: capacities out of range or rising.
    """

    def __init__(self, width: int, capacities: Sequence[float], *, seed: int = 0) -> None:
        super().__init__()
        self.capacities = _capacities(capacities)
        self.recursions = len(self.capacities)
        self.everyone_first = self.capacities[0] == 1
        self.gates = _gates(width, self.recursions)
        self.generator = torch.Generator().manual_seed(seed)

    def choose(self, recursion: int, x: Tensor, alive: Tensor, memory: Any) -> Chosen:
        """Tokens drawn at random."""
        weights = _of_alive(self.gates[recursion], x, alive).sigmoid()
        active = alive
        if _choosy(self.capacities, recursion):
            drawn = torch.rand(alive.shape, generator=self.generator).to(x.device)
            before = self.capacities[recursion - 1] if recursion else 1.0
            if self.training:
                drawn = drawn.masked_fill(~alive, -torch.inf)
                capacity = max(1, round(self.capacities[recursion] * x.shape[1]))
                active = expert_choice(drawn.T, capacity, weigh=torch.sigmoid).mask().T
            else:
                active = alive & (drawn < self.capacities[recursion] / before)
        return Chosen(active, weights, x.new_zeros(()))


def _of_alive(gate: nn.Module, x: Tensor, alive: Tensor) -> Tensor:
    """Logits (n, S) of the gate, -inf for the tokens that nobody asks about, which cost nothing."""
    if bool(alive.all()):
        whole: Tensor = gate(x).squeeze(-1)
        return whole
    asked: Tensor = gate(x[alive]).squeeze(-1)  # (a,)
    return x.new_full(alive.shape, -torch.inf).masked_scatter(alive, asked)


def _gates(width: int, recursions: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width, 1) for _ in range(recursions))


def _choosy(capacities: Sequence[float], recursion: int) -> bool:
    """Whether a recursion leaves tokens out."""
    return capacities[recursion] < (capacities[recursion - 1] if recursion else 1.0)


def _count(recursions: int) -> int:
    if recursions < 1:
        raise InputError(f"there is at least one recursion, got {recursions}")
    return recursions


def _capacities(capacities: Sequence[float]) -> tuple[float, ...]:
    given = tuple(float(share) for share in capacities)
    falling = all(a >= b for a, b in pairwise(given))
    if not given or not falling or not all(0 < share <= 1 for share in given):
        raise InputError(
            "capacities are shares of the tokens in (0, 1], one a recursion, and never rise, "
            f"got {list(given)}"
        )
    return given
