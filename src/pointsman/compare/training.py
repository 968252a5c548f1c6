"""Training, one recipe for every network: the same optimiser, schedule and augmentation for all.

A run can stop after any epoch and go on to the same result, because everything random in an epoch
is drawn from the seed, the name of the network and the number of the epoch.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, PointsmanError

# module, inputs, targets, random generator → scalar loss
Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]
OnEpoch = Callable[[int, float], None]

SECONDS_BETWEEN_SAVES = 5.0


@dataclass(frozen=True)
class Recipe:
    """How every network on one kind of data is trained."""

    batch: int
    rate: float
    weight_decay: float
    augment: Augment | None = None
    warmup: float = 0.2


@dataclass(frozen=True)
class Trained:
    """A trained network and what its training took."""

    module: nn.Module
    epochs: int
    seconds: float


def fit(
    make: Callable[[], nn.Module],
    loss: Loss,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    name: str,
    epochs: int,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train a network from its initial weights, or from where a checkpoint left it.

    Args:
        make: builds the network; called under the seed of this network.
        loss: of one batch.
        x: inputs (n, ...), already preprocessed.
        y: targets (n, ...).
        recipe: shared by all networks of a comparison.
        name: of the network; with the seed it fixes everything random.
        epochs: passes over the data, at least one.
        seed: of the comparison.
        checkpoint: a file to continue from and to save to; its last state is kept when done.
        on_epoch: called with the number of finished epochs and the mean loss of the last one.

    Raises:
        PointsmanError: the loss is no longer finite.
    """
    torch.manual_seed(_seed(seed, name, -1))
    module = make()
    batches = max(1, len(x) // recipe.batch)
    optimiser = torch.optim.AdamW(
        module.parameters(), recipe.rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        recipe.rate,
        total_steps=max(epochs * batches, 10),  # it divides by zero where the warmup is one step
        pct_start=recipe.warmup,
    )
    done, seconds = _restore(checkpoint, module, optimiser, schedule)
    saved_at = time.monotonic()
    for epoch in range(done, epochs):
        start = time.monotonic()
        generator = torch.Generator().manual_seed(_seed(seed, name, epoch))
        mean = _epoch(module, loss, x, y, recipe, batches, optimiser, schedule, generator)
        seconds += time.monotonic() - start
        if not mean == mean or mean in (float("inf"), float("-inf")):
            raise PointsmanError(
                f"training of {name} diverged in epoch {epoch + 1}: the loss is {mean}; "
                "look for extreme values in the features"
            )
        last = epoch + 1 == epochs
        if checkpoint is not None and (last or time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES):
            _save(checkpoint, module, optimiser, schedule, epoch + 1, seconds)
            saved_at = time.monotonic()
        if on_epoch is not None:
            on_epoch(epoch + 1, mean)
    module.eval()
    return Trained(module, epochs, seconds)


def _epoch(
    module: nn.Module,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    batches: int,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
) -> float:
    module.train()
    order = torch.randperm(len(x), generator=generator)
    total = 0.0
    for rows in torch.split(order[: batches * recipe.batch], recipe.batch):
        inputs = x[rows]
        if recipe.augment is not None:
            inputs = recipe.augment(inputs, generator)
        value = loss(module, inputs, y[rows], generator)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += float(value.detach())
    return total / batches


def _seed(seed: int, name: str, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _save(
    path: Path, module: nn.Module, optimiser: Any, schedule: Any, epoch: int, seconds: float
) -> None:
    state = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": epoch,
        "seconds": seconds,
    }
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:  # torch.save to a path fails with errors of its own kind
            torch.save(state, file)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "not written"
        raise InputError(
            f"{path}: the run cannot be kept there ({reason}): was its folder removed, or is the "
            "disk full? make room and run again"
        ) from error


def _restore(
    path: Path | None, module: nn.Module, optimiser: Any, schedule: Any
) -> tuple[int, float]:
    if path is None or not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        return int(state["epoch"]), float(state["seconds"])
    except Exception as error:  # bytes of unknown origin fail in a dozen ways
        raise InputError(
            f"{path}: this part of the unfinished run is damaged: remove the file and resume"
        ) from error
