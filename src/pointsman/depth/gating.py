"""JEI-DNN: heads and gates of an exit network trained for one another, on a frozen trunk.

Regol, Chataoui & Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network: JEI-DNN"
(2023, arXiv:2310.09163; official code networkslab/dynn). A head that only hard inputs reach need
not know the easy ones, and a gate decides best on the heads as they are. So, after a warm-up of the
heads alone, the two take turns of some batches each:

    heads   sum_l P_l CE_l, without gradient through P (see `stopping.gate`), scaled for each input
            to the size of sum_l CE_l, so that inputs which leave late do not fade
    gates   towards 1[l >= l*] with l* = argmin_l (CE_l + price * cost_l), by cross entropy, where
            positives weigh (negatives / positives of that gate on validation), at most 5

cost_l is the share of the whole network's cost that an input has spent when it leaves at l, heads
included. The warm-up weighs the heads G, ..., 1 from the first to the last; a head stops learning
once its accuracy on validation stalls.

Where we depart: the scale in the heads' loss is taken without gradient, too. With it, the scaled
loss is sum_l CE_l exactly and the shares P_l cancel, in value and in gradient. Costs are counted
FLOPs, not numbers of layers. The weights of positives are found again whenever the gates' turn
begins, and are at least 0.01: a gate without a negative would not learn anything at 0.

Legend: n inputs, G gates, S = G + 1 exits, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.fitting import (
    Data,
    Recipe,
    first_inputs,
    fit_weights,
    head_modules,
    parts_of,
    training_only,
)
from pointsman.depth.stopping.gate import LearnedGate, exit_shares
from pointsman.depth.training import exit_logits
from pointsman.errors import InputError
from pointsman.run import StageCosts, evaluating

MOST_WEIGHT = 5.0  # of a positive in the gates' loss
LEAST_WEIGHT = 0.01  # above 0, or a gate that should always be open would never learn to be
WARM_UP, RECIPE = Recipe(epochs=6, rate=1e-2), Recipe(epochs=10, rate=1e-2)


def jei_dnn(
    net: EarlyExit,
    data: Data,
    validation: Data,
    *,
    price: float,
    costs: StageCosts | None = None,
    warm_up: Recipe | None = WARM_UP,
    recipe: Recipe = RECIPE,
    turn: int = 200,
    patience: int = 2,
) -> LearnedGate:
    """Train the heads in place, and gates with them; the trunk stays as it is, to the last bit.

    Args:
        net: with a trained trunk; its last exit is not trained either.
        data: batches (inputs, labels), iterated once an epoch.
        validation: others, for the end of the warm-up and the weights of positives.
        price: nats of cross entropy that the cost of the whole network is worth; 0 exits where the
            loss is least, a large one at the first exit.
        costs: per exit; None: counted FLOPs on the first batch.
        warm_up: of the heads alone; None: they are warm.
        recipe: of the turns.
        turn: batches that heads, then gates, train for.
        patience: epochs without a better accuracy after which a head's warm-up ends.

    Returns:
        The gates, a stopping rule for `net.run`, published threshold 0.5.

    Raises:
        InputError: a price below 0, a turn below 1, costs of another number of exits, or as in
            `train_heads`.
        PointsmanError: training diverged.
    """
    if not price >= 0 or turn < 1:
        raise InputError(f"a price is at least 0 and a turn at least 1 batch, got {price}, {turn}")
    example = first_inputs(data)
    found = parts_of(net, net.stages(), example)
    own = [found.head(exit_) for exit_ in range(found.last)]
    costs = net.stage_costs(example) if costs is None else costs
    gates = LearnedGate(found.last).to(own[0][0] if own[0] else torch.zeros(()))
    turns = _Turns(net, gates, _spent(costs, found.last + 1, gates), price, turn, validation)
    with training_only(net, (w for group in own for w in group), head_modules(net)):
        if warm_up is not None:
            stalled = _Stalled(net, own, validation, patience)
            fit_weights(own, _warm_up_losses(net, found.last), data, warm_up, after_epoch=stalled)
            stalled.release()
        fit_weights([*own, list(gates.parameters())], turns, data, recipe)
    return gates.eval()


def exit_target(losses: Tensor, spent: Tensor, price: float) -> Tensor:
    """Which gates should be open, (n, G) of 0 and 1, from the losses (n, S) of all exits.

    From the exit with the least loss plus priced cost on; an input that should reach the last exit
    has only zeros.

    Args:
        losses: (n, S) cross entropies.
        spent: (S,) share of the whole cost that leaving at each exit takes.
        price: of the whole cost.
    """
    best = (losses + price * spent).argmin(dim=1, keepdim=True)
    return (torch.arange(losses.shape[1] - 1, device=losses.device) >= best).to(losses)


def shared_loss(losses: Tensor, shares: Tensor) -> Tensor:
    """The heads' loss, a scalar: each input's losses (n, G) weighed by where it leaves.

    Args:
        losses: (n, G) of the early heads.
        shares: (n, G) of the input that leaves there; no gradient reaches them.
    """
    weighed = shares.detach() * losses
    scale = losses.detach().sum(dim=1) / weighed.detach().sum(dim=1).clamp_min(1e-12)
    return (weighed.sum(dim=1) * scale).mean()


@dataclass(eq=False)
class _Turns:
    """Losses of a batch: the heads' in one turn, the gates' in the next."""

    net: EarlyExit
    gates: LearnedGate
    spent: Tensor
    price: float
    turn: int
    validation: Data
    done: int = 0
    positive: Tensor = field(default_factory=lambda: torch.ones(()))

    def __call__(self, x: Any, y: Tensor) -> Tensor:
        heads = self.done // self.turn % 2 == 0
        if not heads and self.done % self.turn == 0:
            self.positive = self._positive_weights()
        self.done += 1
        losses, logits = _losses(self.net, x, y, range(len(self.spent)), grad=heads)
        scores = self.gates.scores(logits)
        none = losses.new_zeros(())
        if heads:
            early = losses[:, :-1]
            shares = exit_shares(scores.sigmoid())[:, :-1]
            return torch.stack([shared_loss(early, shares), none])
        target = exit_target(losses, self.spent.to(losses), self.price)
        found = functional.binary_cross_entropy_with_logits(
            scores, target.to(scores), pos_weight=self.positive.to(scores)
        )
        return torch.stack([none.to(found), found])

    def _positive_weights(self) -> Tensor:
        """(G,) negatives per positive of each gate on validation, at most 5."""
        targets = []
        with evaluating(self.net):
            for x, y in self.validation:
                losses, _ = _losses(self.net, x, y, range(len(self.spent)), grad=False)
                targets.append(exit_target(losses, self.spent.to(losses), self.price))
        if not targets:
            raise InputError("the validation data gave no batch: give what can be iterated again")
        share = torch.cat(targets).mean(dim=0)
        return ((1 - share) / share.clamp_min(1e-6)).clamp(LEAST_WEIGHT, MOST_WEIGHT)


@dataclass(eq=False)
class _Stalled:
    """Ends the warm-up of each head once its accuracy on validation no longer rises."""

    net: EarlyExit
    own: list[list[nn.Parameter]]
    validation: Data
    patience: int
    best: dict[int, float] = field(default_factory=dict)
    waited: dict[int, int] = field(default_factory=dict)

    def __call__(self, epoch: int) -> bool:
        for exit_, accuracy in enumerate(_accuracies(self.net, self.validation, len(self.own))):
            better = accuracy > self.best.get(exit_, -1.0)
            self.best[exit_] = max(accuracy, self.best.get(exit_, -1.0))
            self.waited[exit_] = 0 if better else self.waited[exit_] + 1
            if self.waited[exit_] >= self.patience:
                self._ask(exit_, False)
        return not any(weight.requires_grad for group in self.own for weight in group)

    def release(self) -> None:
        """All heads learn again."""
        for exit_ in range(len(self.own)):
            self._ask(exit_, True)

    def _ask(self, exit_: int, wanted: bool) -> None:
        for weight in self.own[exit_]:
            weight.requires_grad_(wanted)
            weight.grad = None


def _warm_up_losses(net: EarlyExit, gates: int) -> Callable[[Any, Any], Tensor]:
    weights = torch.arange(gates, 0, -1.0)

    def losses(x: Any, y: Any) -> Tensor:
        return _losses(net, x, y, range(gates), grad=True)[0].mean(dim=0) * weights.to(y.device)

    return losses


def _losses(
    net: EarlyExit, x: Any, y: Tensor, exits: range, *, grad: bool
) -> tuple[Tensor, list[Tensor]]:
    """Cross entropies (n, exits) and logits of the first exits."""
    with torch.set_grad_enabled(grad):
        logits = exit_logits(net, x, list(exits))
        losses = [functional.cross_entropy(each, y, reduction="none") for each in logits]
        return torch.stack(losses, dim=1), logits


@torch.no_grad()
def _accuracies(net: EarlyExit, data: Data, gates: int) -> list[float]:
    right, count = torch.zeros(gates), 0
    with evaluating(net):
        for x, y in data:
            logits = exit_logits(net, x, list(range(gates)))
            right += torch.stack([(each.argmax(dim=1) == y).sum() for each in logits]).cpu()
            count += len(y)
    return (right / max(count, 1)).tolist()


def _spent(costs: StageCosts, exits: int, gates: LearnedGate) -> Tensor:
    """(S,) what an input has spent when it leaves at each exit, as a share of the whole."""
    if len(costs) != exits:
        raise InputError(f"{exits} exits need a cost each, got {len(costs)}")
    spent = np.cumsum(np.asarray(costs.advance.amount) + np.asarray(costs.answer.amount))
    return torch.as_tensor(spent / spent[-1]).to(gates.bias)
