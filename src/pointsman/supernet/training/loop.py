"""The one training loop of supernets: draw paths, draw a batch, add up the losses, update.

Legend: N inputs of a batch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.batches import Batch, Batches
from pointsman.supernet.training.paths import Path, Paths

# outputs, targets -> loss of each example (N,), or anything whose mean is the loss
ExampleLoss = Callable[[Any, Any], Tensor]
# parameters -> optimiser
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, classes) logits and (N,) labels to (N,) losses."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def soft_cross_entropy(outputs: Tensor, teacher: Tensor) -> Tensor:
    """(N, classes) logits of a subnet and of its teacher to (N,) losses."""
    return -(teacher.softmax(dim=-1) * outputs.log_softmax(dim=-1)).sum(dim=-1)


def train_supernet(
    supernet: Supernet,
    batches: Batches,
    paths: Paths,
    *,
    updates: int,
    loss: ExampleLoss = cross_entropy,
    optimiser: MakeOptimizer | None = None,
    rate: float = 1e-2,
    decay: float = 1e-2,
    clip: float | None = None,
    distil: bool = False,
) -> list[float]:
    """Train what is not frozen; then evaluation mode, with the last options in force.

    Statistics of batch normalisation that were gathered here mix all paths: recalibrate them for a
    subnet before it is judged (`InheritedQuality` does).

    Args:
        supernet: changed in place.
        batches: where each update's batch comes from.
        paths: which subnets an update trains; all of them see the same batch.
        updates: of the optimiser.
        loss: of each example.
        optimiser: made from the parameters; None: AdamW with `rate` and `decay`. In either case its
            rate falls to 0 along a cosine.
        rate: at the start.
        decay: of the weights.
        clip: largest norm of a gradient; None: no limit.
        distil: whether all paths but the first learn from the outputs of the first instead of the
            targets (Yu & Huang 2019, arXiv 1903.05134); for classifiers.

    Returns:
        The mean loss over the paths of each update.

    Raises:
        InputError: no update; the forward or the loss breaks for a path, which is named; or the
            loss is not finite.
    """
    if updates < 1:
        raise InputError(f"training takes at least one update, got updates={updates}")
    weights = [weight for weight in supernet.parameters() if weight.requires_grad]
    make = optimiser or (lambda given: torch.optim.AdamW(given, rate, weight_decay=decay))
    stepping = make(weights)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepping, updates)
    history = []
    supernet.train()
    for update in range(updates):
        done = update / updates
        batch, drawn = batches.draw(done), paths.draw(done)
        stepping.zero_grad()
        losses, outputs = _backward(supernet, batch, drawn, loss, distil)
        if clip is not None:
            nn.utils.clip_grad_norm_(weights, clip)
        stepping.step()
        schedule.step()
        batches.learn(batch, outputs)
        paths.learn(supernet, drawn, losses)
        history.append(sum(losses) / len(losses))
    supernet.eval()
    supernet.use([len(choice.options) - 1 for choice in supernet.space.choices])
    return history


def _backward(
    supernet: Supernet, batch: Batch, drawn: Sequence[Path], loss: ExampleLoss, distil: bool
) -> tuple[list[float], Any]:
    """Adds the gradients of every path; the losses, and the outputs of the last path."""
    losses, teacher, outputs = [], None, None
    for path in drawn:
        supernet.use(path.genotype)
        try:
            outputs = supernet(batch.x)
            if distil and teacher is not None:
                each = soft_cross_entropy(outputs, teacher)
            else:
                each = loss(outputs, batch.y)
        except Exception as error:
            raise InputError(
                f"every path can be trained, {named(supernet, path.genotype)} cannot: "
                f"{type(error).__name__}: {error}"
            ) from error
        teacher = outputs.detach() if distil and teacher is None else teacher
        value = (each if batch.weight is None else each * batch.weight).mean()
        if not value.isfinite():
            raise InputError(
                f"a loss is a finite number, got {float(value.detach())} for "
                f"{named(supernet, path.genotype)}: lower the rate or clip the gradient"
            )
        (path.weight * value).backward()  # type: ignore[no-untyped-call]
        losses.append(float(value.detach()))
    return losses, outputs.detach() if isinstance(outputs, Tensor) else outputs


def named(supernet: Supernet, genotype: Genotype) -> str:
    """A subnet as its options, for messages."""
    return ", ".join(f"{k}={v}" for k, v in supernet.space.decode(genotype).items())
