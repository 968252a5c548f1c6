"""Fine-tuning of a pretrained network as a supernet: its subnets learn from it while it learns.

Sridhar et al., "InstaTune: Instantaneous Neural Architecture Search During Fine-Tuning" (2023,
arXiv 2308.15609). A pretrained network is made elastic and fine-tuned on the task: at every update
the whole network by the task's loss, and one subnet or a few drawn at random by the task's loss and
by distillation from the whole network (or from a stronger teacher), all gradients in one update.
Subnets are then searched and used as they are. The loop is `train_supernet`; what is here are the
paths, the loss and the batches of it.

Where we depart: the shares of loss and distillation are not in the paper's abstract; they are equal
by default. Order the units by importance before (`make_elastic(..., importance=)`), or narrow
subnets start with units in the order in which they happen to be stored.

Legend: N inputs of a batch, C classes or tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.space import Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.batches import Batch, Batches
from pointsman.supernet.training.loop import (
    ExampleLoss,
    MakeOptimizer,
    cross_entropy,
    soft_cross_entropy,
    train_supernet,
)
from pointsman.supernet.training.paths import Path, Paths, UniformPaths


class LargestFirst:
    """The whole network, then whatever another sampler of paths draws.

    Args:
        paths: of the subnets.
        space: of the supernet; its last options are the whole network.
        begin: called at each draw, before any path is trained.
    """

    def __init__(
        self, paths: Paths, space: Space, begin: Callable[[], None] = lambda: None
    ) -> None:
        self.paths, self.begin = paths, begin
        self.largest = Path(space.canonical([len(c.options) - 1 for c in space.choices]))

    def draw(self, done: float) -> Sequence[Path]:
        """The largest path and those drawn."""
        self.begin()
        return [self.largest, *self.paths.draw(done)]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Told of the paths that it drew."""
        self.paths.learn(supernet, paths[1:], losses[1:])


@dataclass(frozen=True, eq=False)
class Taught:
    """Targets of a batch with what a teacher answered to its inputs."""

    y: Any
    teacher: Tensor


class TaughtBatches:
    """Batches whose targets come with a teacher's logits.

    Args:
        batches: any others.
        teacher: asked for each batch, in evaluation mode and without gradients.
        logits: of what the teacher answers.
    """

    def __init__(
        self, batches: Batches, teacher: nn.Module, logits: Callable[[Any], Tensor]
    ) -> None:
        self.batches, self.teacher, self.logits = batches, teacher, logits

    def draw(self, done: float) -> Batch:
        """The next batch, taught."""
        batch = self.batches.draw(done)
        with evaluating(self.teacher), torch.no_grad():
            answer = self.logits(self.teacher(batch.x))
        return replace(batch, y=Taught(batch.y, answer))

    def learn(self, batch: Batch, outputs: Any) -> None:
        """Told of the batch as it was drawn."""
        assert isinstance(batch.y, Taught)
        self.batches.learn(replace(batch, y=batch.y.y), outputs)


class DistillationLoss:
    """The task's loss for the first path of an update; for the others a mixture with distillation.

    Where targets come `Taught`, the teacher's logits are used, else those of the first path, which
    is the whole network. `begin` says that an update begins.

    Args:
        task: of the outputs' logits and the targets, each example's.
        share: of the distillation in the loss of a subnet.
        logits: of what the network answers.

    Raises:
        InputError: a share outside [0, 1].
    """

    def __init__(
        self,
        task: ExampleLoss = cross_entropy,
        *,
        share: float = 0.5,
        logits: Callable[[Any], Tensor] = lambda answer: answer,
    ) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"the share of the distillation lies in [0, 1], got {share}")
        self.task, self.share, self.logits = task, share, logits
        self._teacher: Tensor | None = None

    def begin(self) -> None:
        """The next call is for the first path of an update."""
        self._teacher = None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Loss of each example, or of each token."""
        logits = self.logits(outputs)
        y = targets.y if isinstance(targets, Taught) else targets
        losses = self.task(logits, y)
        if self._teacher is None:
            self._teacher = targets.teacher if isinstance(targets, Taught) else logits.detach()
            return losses
        taught = soft_cross_entropy(logits, self._teacher)
        return (1 - self.share) * losses + self.share * taught.view_as(losses)


def finetune_elastic(
    supernet: Supernet,
    batches: Batches,
    *,
    updates: int,
    task: ExampleLoss = cross_entropy,
    logits: Callable[[Any], Tensor] = lambda answer: answer,
    teacher: nn.Module | None = None,
    share: float = 0.5,
    subnets: int = 1,
    paths: Paths | None = None,
    optimiser: MakeOptimizer | None = None,
    rate: float = 1e-3,
    decay: float = 1e-2,
    clip: float | None = 1.0,
    seed: int = 0,
) -> list[float]:
    """Fine-tune a supernet made of a pretrained network; then evaluation mode, whole in force.

    Args:
        supernet: changed in place.
        batches: of the task.
        updates: of the optimiser.
        task: loss of logits and targets.
        logits: of what the network answers; `language.logits_of` for a model of `transformers`.
        teacher: a stronger network of the same task; None: the whole network itself, as it learns.
        share: of the distillation in the loss of a subnet.
        subnets: drawn for an update.
        paths: draws the subnets; None: each option with equal probability.
        optimiser: as for `train_supernet`, as are `rate`, `decay` and `clip`.
        rate: at the start.
        decay: of the weights.
        clip: largest norm of a gradient.
        seed: of the subnets.

    Returns:
        The mean loss over the paths of each update.

    Raises:
        InputError: as for `train_supernet`, or a share outside [0, 1].
    """
    loss = DistillationLoss(task, share=share, logits=logits)
    drawn = paths or UniformPaths(supernet.space, seed=seed, count=subnets)
    return train_supernet(
        supernet,
        batches if teacher is None else TaughtBatches(batches, teacher, logits),
        LargestFirst(drawn, supernet.space, loss.begin),
        updates=updates,
        loss=loss,
        optimiser=optimiser,
        rate=rate,
        decay=decay,
        clip=clip,
    )
