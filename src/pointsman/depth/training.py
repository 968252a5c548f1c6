"""Training exits: all at once with the trunk, stage by stage, or heads alone on a frozen trunk.

    train_jointly         every exit and the trunk on the weighted sum of their losses
    train_heads           heads only; the trunk stays as it is, to the last bit
    train_back_to_front   trunk and last exit first, then the heads on the frozen trunk
    train_front_to_back   each part of the trunk with its exit, then frozen, then the next

Trained together, early exits pull the trunk towards themselves and can cost the last exit accuracy.
What the literature does about it is an option here, and nothing of it is on by itself:

- weights, small for early exits (Kaya, Hong & Dumitras, "Shallow-Deep Networks", 2018,
  arXiv:1810.07052; Zhou et al., PABEE, 2020, arXiv:2006.04152, weigh an exit by its depth);
- distillation from the last exit, whose softer answers are the better teacher of heads that cannot
  reach the labels (Phuong & Lampert, "Distillation-Based Training for Multi-Exit Architectures",
  ICCV 2019; Zhang et al., "Be Your Own Teacher", 2019, arXiv:1905.08094):

      loss_s = (1 - a) CE(z_s, y) + a T^2 KL(softmax(z_S / T) || softmax(z_s / T)),  s < S

- gradient equilibrium: the gradient in each part of the trunk is the mean over the exits after it
  instead of their sum (Li et al., "Improved Techniques for Training Adaptive Deep Networks", 2019,
  arXiv:1908.06294). Published as rescaling at each branch, which comes to one factor per part, and
  that is how it is done here. Optimisers that divide by the gradient's size, such as AdamW, cancel
  such a factor: it matters for plain SGD;
- `into_trunk`, the share of the early exits' gradient that reaches the trunk: 0 detaches the heads,
  which trains the trunk as if it were alone and the heads along with it.

Legend: T inputs, S exits (the last is the network's own end), C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.fitting import (
    Data,
    Parts,
    Recipe,
    first_inputs,
    fit_weights,
    head_modules,
    parts_of,
    training_only,
)
from pointsman.errors import InputError
from pointsman.run import State

History = list[tuple[float, ...]]
RECIPE = Recipe()


@dataclass(frozen=True)
class ExitLoss:
    """What each exit is trained towards.

    Args:
        weights: S numbers of at least 0, one for each exit; None: all 1.
        distil: a in [0, 1], how much of an early exit's loss is the last exit's answer instead of
            the label. At 1 no labels are needed where the last exit is not trained.
        temperature: T, above 0, at which answers are compared.
        smoothing: of the labels, in [0, 1).

    Raises:
        InputError: a number out of its range.
    """

    weights: Sequence[float] | None = None
    distil: float = 0.0
    temperature: float = 2.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        weights = (1.0,) if self.weights is None else tuple(self.weights)
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            raise InputError(f"weights are at least 0 and not all 0, got {list(weights)}")
        if not 0 <= self.distil <= 1 or not self.temperature > 0 or not 0 <= self.smoothing < 1:
            raise InputError(
                "distil lies in [0, 1], the temperature is above 0 and smoothing lies in [0, 1), "
                f"got {self.distil}, {self.temperature} and {self.smoothing}"
            )

    def weight(self, exit_: int, exits: int) -> float:
        """Of one of S exits.

        Raises:
            InputError: weights of another number of exits.
        """
        if self.weights is None:
            return 1.0
        if len(self.weights) != exits:
            raise InputError(f"{exits} exits need a weight each, got {len(self.weights)}")
        return float(self.weights[exit_])

    def label(self, logits: Tensor, target: Tensor | None) -> Tensor:
        """Cross entropy with the labels, a scalar.

        Args:
            logits: (T, C), or (T, ..., C) where an input has several places.
            target: (T,) or (T, ...) classes; -100 is left out.

        Raises:
            InputError: no labels.
        """
        if target is None:
            raise InputError(
                "there are no labels to train towards: give them, or train heads only with "
                "ExitLoss(distil=1)"
            )
        return functional.cross_entropy(
            logits.flatten(0, -2), target.flatten(), label_smoothing=self.smoothing
        )

    def towards(self, logits: Tensor, target: Tensor | None, teacher: Tensor) -> Tensor:
        """An early exit's loss, a scalar; no gradient reaches the teacher.

        Raises:
            InputError: the two differ in their classes, or labels are needed and not there.
        """
        if self.distil == 0:
            return self.label(logits, target)
        if logits.shape != teacher.shape:
            raise InputError(
                f"an exit learns from another with the same classes, got logits "
                f"{tuple(logits.shape)} and {tuple(teacher.shape)}: set distil=0"
            )
        taught = distillation(logits, teacher, self.temperature)
        if self.distil == 1:
            return taught
        return (1 - self.distil) * self.label(logits, target) + self.distil * taught


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), the mean over inputs; a scalar.

    Args:
        logits: (T, ..., C).
        teacher: (T, ..., C); no gradient reaches it.
        temperature: T. The factor T^2 keeps the gradient's size (Hinton et al. 2015,
            arXiv:1503.02531).
    """
    wanted = (teacher.detach() / temperature).flatten(0, -2).log_softmax(dim=-1)
    given = (logits / temperature).flatten(0, -2).log_softmax(dim=-1)
    return temperature**2 * functional.kl_div(given, wanted, reduction="batchmean", log_target=True)


def train_jointly(
    net: EarlyExit,
    data: Data,
    recipe: Recipe = RECIPE,
    loss: ExitLoss = ExitLoss(),
    *,
    into_trunk: float = 1.0,
    equilibrium: bool = False,
) -> History:
    """Train trunk and heads together on the weighted losses of all exits; in place.

    Args:
        net: ends in the mode it came in.
        data: batches (inputs, labels), iterated once an epoch, such as `Batches(x, y)`.
        recipe: see `Recipe`.
        loss: see `ExitLoss`.
        into_trunk: share in [0, 1] of the early exits' gradient that goes on into the trunk.
        equilibrium: divide the gradient of each part of the trunk by the number of exits after it.

    Returns:
        For each epoch the S weighted mean losses.

    Raises:
        InputError: options out of their range, or data that does not fit.
        PointsmanError: training diverged.
    """
    if not 0 <= into_trunk <= 1:
        raise InputError(f"into_trunk is a share in [0, 1], got {into_trunk}")
    found = parts_of(net, net.stages(), first_inputs(data))
    exits = list(range(found.last + 1))
    weights = [weight for weight in found.users if weight.requires_grad]

    def losses(x: Any, y: Any) -> Tensor:
        return _losses(exit_logits(net, x, exits, into_trunk), y, loss)

    with training_only(net, weights, net.modules()):
        before = _balancer(found) if equilibrium else None
        return fit_weights([weights], losses, data, recipe, before_step=before)


def train_heads(
    net: EarlyExit, data: Data, recipe: Recipe = RECIPE, loss: ExitLoss = ExitLoss()
) -> History:
    """Train the early heads alone; the trunk, its batch statistics too, stays as it is.

    Weights that a head shares with the network's own end, such as a language model's unembedding,
    belong to the trunk and stay, too. Heads do not touch one another.

    Args:
        net: with a trained trunk.
        data: batches (inputs, labels); labels may be None with `ExitLoss(distil=1)`.
        recipe: see `Recipe`.
        loss: see `ExitLoss`; the weight of the last exit is not read.

    Returns:
        For each epoch the S - 1 weighted mean losses.

    Raises:
        InputError: heads without weights of their own, or as in `train_jointly`.
        PointsmanError: training diverged.
    """
    found = parts_of(net, net.stages(), first_inputs(data))
    early = list(range(found.last))
    own = [found.head(exit_) for exit_ in early]
    asked = early if loss.distil == 0 else [*early, found.last]

    def losses(x: Any, y: Any) -> Tensor:
        logits = exit_logits(net, x, asked)
        return _losses(logits, y, loss, early=len(early), exits=found.last + 1)

    with training_only(net, (w for group in own for w in group), head_modules(net)):
        return fit_weights(own, losses, data, recipe)


def train_back_to_front(
    net: EarlyExit,
    data: Data,
    recipe: Recipe = RECIPE,
    loss: ExitLoss = ExitLoss(),
    *,
    heads: Recipe | None = None,
) -> tuple[History, History]:
    """Trunk and last exit first, as if there were no other, then the heads on the frozen trunk.

    Published as one head after the other from the last to the first (Berestizshevsky & Even 2018,
    arXiv:1805.10982). On a frozen trunk heads do not touch one another, so they are trained at
    once, which gives the same and runs the trunk once.

    Args:
        net: ends in the mode it came in.
        data: batches (inputs, labels).
        recipe: of the trunk.
        loss: of both.
        heads: recipe of the heads; None: as the trunk's.

    Returns:
        The history of the trunk (one loss an epoch), and that of the heads.

    Raises:
        InputError: as in `train_heads`.
        PointsmanError: training diverged.
    """
    found = parts_of(net, net.stages(), first_inputs(data))
    trunk = [weight for weight in found.trunk() if weight.requires_grad]

    def losses(x: Any, y: Any) -> Tensor:
        return loss.label(exit_logits(net, x, [found.last])[0], y).reshape(1)

    own = set(head_modules(net))
    with training_only(net, trunk, (m for m in net.modules() if m not in own)):
        first = fit_weights([trunk], losses, data, recipe)
    return first, train_heads(net, data, recipe if heads is None else heads, loss)


def train_front_to_back(
    net: EarlyExit, data: Data, recipe: Recipe = RECIPE, loss: ExitLoss = ExitLoss()
) -> History:
    """Each part of the trunk with the exit after it, then frozen; then the next (greedy).

    Belilovsky et al., "Greedy Layerwise Learning Can Scale to ImageNet" (2018, arXiv:1812.11446);
    Marquez et al., "Deep Cascade Learning" (2018). The first exit is as good as a network of its
    size can be; later ones get features that were not made for them, which costs accuracy.

    Args:
        net: ends in the mode it came in.
        data: batches (inputs, labels).
        recipe: of every stage.
        loss: `distil` must be 0: the last exit is the last to be trained.

    Returns:
        For each epoch of each stage, in order, its loss.

    Raises:
        InputError: `distil` is not 0, or as in `train_jointly`.
        PointsmanError: training diverged.
    """
    if loss.distil != 0:
        raise InputError("front to back, the last exit teaches nobody: set distil=0")
    found = parts_of(net, net.stages(), first_inputs(data))
    history: History = []
    for exit_ in range(found.last + 1):
        weights = [weight for weight in found.stage(exit_) if weight.requires_grad]
        with training_only(net, weights, found.modules[exit_]):
            history += fit_weights([weights], _one(net, exit_, loss), data, recipe)
    return history


def _one(net: EarlyExit, exit_: int, loss: ExitLoss) -> Any:
    def losses(x: Any, y: Any) -> Tensor:
        return loss.label(exit_logits(net, x, [exit_])[0], y).reshape(1)

    return losses


def exit_logits(
    net: EarlyExit, x: State, exits: Sequence[int], into_trunk: float = 1.0
) -> list[Tensor]:
    """Logits of some exits, in ascending order; nothing runs past the last of them.

    Args:
        net: gives its stages.
        x: a batch.
        exits: from 0, ascending.
        into_trunk: share of the gradient that goes from an early exit's answer into its features.
    """
    stages, state, found = net.stages(), x, []
    for at, stage in enumerate(stages[: exits[-1] + 1]):
        state = state if stage.advance is None else stage.advance(state)
        if at in exits:
            early = at < len(stages) - 1 and into_trunk < 1
            found.append(stage.answer(_scaled(state, into_trunk) if early else state))
    return found


def _scaled(state: State, share: float) -> State:
    """The same state, of whose gradient only a share goes back."""
    if isinstance(state, Tensor):
        return share * state + (1 - share) * state.detach() if state.requires_grad else state
    if isinstance(state, dict):
        return {name: _scaled(part, share) for name, part in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(_scaled(part, share) for part in state)
    return state


def _losses(
    logits: list[Tensor],
    y: Tensor | None,
    loss: ExitLoss,
    *,
    early: int | None = None,
    exits: int | None = None,
) -> Tensor:
    """Weighted losses: of all exits, or with `early` of the first ones only."""
    count = len(logits) if exits is None else exits
    taught = count - 1 if early is None else early
    parts = [
        loss.weight(at, count) * loss.towards(logits[at], y, logits[-1]) for at in range(taught)
    ]
    if early is None:
        parts.append(loss.weight(count - 1, count) * loss.label(logits[-1], y))
    return torch.stack(parts)


def _balancer(found: Parts) -> Any:
    """Divides the gradients of the trunk by the number of exits that they come from."""
    shared = [(w, len(users)) for w, users in found.users.items() if found.last in users]

    def divide() -> None:
        for weight, count in shared:
            if weight.grad is not None:
                weight.grad /= count

    return divide
