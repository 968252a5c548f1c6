"""The loop under every training of exits: batches, a recipe, and which weights are whose.

Legend: T inputs, S exits, C classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.depth.trunks.rows import count_rows, take_rows
from pointsman.errors import InputError, PointsmanError
from pointsman.modules import evaluating
from pointsman.run import Stage, State

Data = Iterable[tuple[Any, Any]]  # (inputs, targets), again and again: one pass an epoch
Augment = Callable[[Any], Any]


class Batches:
    """Inputs and targets in batches, in another order at every pass.

    Args:
        x: (T, ...), or tuples, lists and dicts of such tensors.
        y: (T, ...) targets; None where training needs none: batches then come with None.
        batch: inputs in each; the rest that does not fill one is left out of that pass.
        seed: of the orders.
        augment: called with the inputs of each batch.

    Raises:
        InputError: no input, another number of targets, or a batch below 1.
    """

    def __init__(
        self,
        x: State,
        y: Tensor | None,
        batch: int = 128,
        *,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        self.rows = count_rows(x)
        if self.rows == 0 or (y is not None and len(y) != self.rows) or batch < 1:
            raise InputError(
                f"batches need at least one input, a target for each and a size of at least 1, got "
                f"{self.rows} inputs, {'no' if y is None else len(y)} targets, size {batch}"
            )
        self.x, self.y, self.augment = x, y, augment
        self.batch = min(batch, self.rows)
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.rows // self.batch

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(self.rows, generator=self._generator)
        for rows in order[: len(self) * self.batch].reshape(-1, self.batch):
            x = take_rows(self.x, rows)
            x = x if self.augment is None else self.augment(x)
            yield x, None if self.y is None else self.y[rows.to(self.y.device)]


@dataclass(frozen=True)
class Recipe:
    """How weights are fitted: passes, rate and what goes with it.

    Args:
        epochs: passes over the data.
        rate: at its highest; it rises over the warm-up and falls to 0 along a cosine.
        decay: of the weights.
        warmup: share of all updates.
        clip: largest norm of a group's gradient; inf: none is clipped.
        optimiser: from groups of parameters to an optimiser, whose own rates are then scaled over
            time; None: AdamW with `rate` and `decay`.

    Raises:
        InputError: fewer than one epoch, a rate or a clip that is not above 0, a warm-up outside
            [0, 1).
    """

    epochs: int = 10
    rate: float = 2e-3
    decay: float = 1e-2
    warmup: float = 0.1
    clip: float = 1.0
    optimiser: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.rate > 0 or not self.clip > 0 or not 0 <= self.warmup < 1:
            raise InputError(
                "a recipe has at least one epoch, a rate and a clip above 0 and a warm-up in "
                f"[0, 1), got epochs={self.epochs}, rate={self.rate}, clip={self.clip}, "
                f"warmup={self.warmup}"
            )

    def make(self, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimiser of these groups; each is clipped by itself."""
        named = [{"params": list(group)} for group in groups]
        if self.optimiser is not None:
            return self.optimiser(named)
        return torch.optim.AdamW(named, self.rate, weight_decay=self.decay)

    def scale(self, progress: float) -> float:
        """Factor of the rate at a share in [0, 1] of the training."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


def fit_weights(
    groups: Sequence[Sequence[nn.Parameter]],
    losses: Callable[[Any, Any], Tensor],
    data: Data,
    recipe: Recipe,
    *,
    before_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int], bool | None] | None = None,
) -> list[tuple[float, ...]]:
    """Fit groups of weights to a sum of losses.

    Args:
        groups: of parameters, each clipped by itself; other weights stay as they are.
        losses: inputs and targets of a batch -> (L,) losses, already weighted.
        data: iterated once an epoch.
        recipe: see `Recipe`.
        before_step: called when gradients are there and not yet clipped.
        after_epoch: called with the number of finished epochs; True ends the training.

    Returns:
        For each epoch the L mean losses.

    Raises:
        InputError: nothing to fit, or data that ends before the last epoch.
        PointsmanError: the losses are no longer finite.
    """
    groups = [list(group) for group in groups if group]
    if not groups:
        raise InputError("there is nothing to fit: no weight of these parts can be trained")
    optimiser, history = recipe.make(groups), []
    schedule = _schedule(optimiser, recipe, data)
    for epoch in range(recipe.epochs):
        total, count = torch.zeros(()), 0
        for inputs, targets in data:
            optimiser.zero_grad(set_to_none=True)
            parts = losses(inputs, targets)
            parts.sum().backward()  # type: ignore[no-untyped-call]
            if before_step is not None:
                before_step()
            for group in groups:
                nn.utils.clip_grad_norm_(group, recipe.clip)
            schedule(epoch, count)
            optimiser.step()
            total, count = total + parts.detach().cpu(), count + 1
        history.append(_mean(total, count, epoch))
        if after_epoch is not None and after_epoch(epoch + 1):
            break
    optimiser.zero_grad(set_to_none=True)
    return history


def _mean(total: Tensor, count: int, epoch: int) -> tuple[float, ...]:
    if count == 0:
        raise InputError(
            f"the data gave no batch in epoch {epoch + 1}: give what can be iterated again, such "
            "as Batches, a DataLoader or a list"
        )
    means = (total / count).reshape(-1).tolist()
    if not all(math.isfinite(mean) for mean in means):
        raise PointsmanError(
            f"training diverged in epoch {epoch + 1}: the losses are {means}; look for extreme "
            "inputs, or take a lower rate"
        )
    return tuple(means)


def _schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, data: Data
) -> Callable[[int, int], None]:
    """Sets the rates before each update; where the data has no length, once an epoch."""
    highest = [group["lr"] for group in optimiser.param_groups]
    updates = len(data) if isinstance(data, Sized) else 1

    def set_rates(epoch: int, update: int) -> None:
        done = epoch + min(update + 0.5, updates - 0.5) / max(updates, 1)
        for group, rate in zip(optimiser.param_groups, highest, strict=True):
            group["lr"] = rate * recipe.scale(done / recipe.epochs)

    return set_rates


@dataclass(frozen=True, eq=False)
class Parts:
    """Which weights and modules belong to which exit.

    Attributes:
        users: parameter -> the exits whose logits depend on it.
        modules: for each exit, the modules that first run on the way to it or in its answer.
        last: number of the last exit.
    """

    users: dict[nn.Parameter, tuple[int, ...]]
    modules: tuple[tuple[nn.Module, ...], ...]
    last: int

    def trunk(self) -> list[nn.Parameter]:
        """What the network's own end needs."""
        return [weight for weight, users in self.users.items() if self.last in users]

    def head(self, exit_: int) -> list[nn.Parameter]:
        """What this exit needs and neither the network's end nor an earlier exit does."""
        return [
            weight
            for weight, users in self.users.items()
            if users and users[0] == exit_ and self.last not in users
        ]

    def stage(self, exit_: int) -> list[nn.Parameter]:
        """What this exit is the first to need: its part of the trunk, and its head."""
        return [weight for weight, users in self.users.items() if users and users[0] == exit_]


def parts_of(net: nn.Module, stages: Sequence[Stage], x: State) -> Parts:
    """Find out whose weights are whose by running two inputs of a batch through all stages.

    Nothing is changed by it. Weights that no exit depends on are nobody's.
    """
    weights = [weight for weight in net.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    users: dict[nn.Parameter, tuple[int, ...]] = dict.fromkeys(weights, ())
    called: list[list[nn.Module]] = []
    seen: set[nn.Module] = set()

    def on_call(module: nn.Module, inputs: Any) -> None:
        if module not in seen:
            seen.add(module)
            called[-1].append(module)

    hooks = [module.register_forward_pre_hook(on_call) for module in net.modules()]
    try:
        with evaluating(net), torch.enable_grad():
            for weight in frozen:
                weight.requires_grad_(True)
            state = take_rows(x, slice(0, 2))
            for at, stage in enumerate(stages):
                called.append([])
                state = state if stage.advance is None else stage.advance(state)
                for weight in _reached(stage.answer(state), weights):
                    users[weight] = (*users[weight], at)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for hook in hooks:
            hook.remove()
    return Parts(users, tuple(tuple(modules) for modules in called), len(stages) - 1)


def _reached(logits: Tensor, weights: list[nn.Parameter]) -> list[nn.Parameter]:
    if not logits.requires_grad:
        return []
    gradients = torch.autograd.grad(
        logits.float().sum(), weights, retain_graph=True, allow_unused=True
    )
    return [w for w, gradient in zip(weights, gradients, strict=True) if gradient is not None]


@contextmanager
def training_only(
    net: nn.Module, weights: Iterable[nn.Parameter], modules: Iterable[nn.Module]
) -> Iterator[None]:
    """Only these weights ask for gradients and only these modules are in training mode meanwhile.

    So what is frozen is so to the last bit: batch statistics do not move and nothing drops out.
    """
    asked = {weight: weight.requires_grad for weight in net.parameters()}
    modes = {module: module.training for module in net.modules()}
    chosen = set(weights)
    try:
        for weight in asked:
            weight.requires_grad_(weight in chosen)
        net.eval()
        for module in modules:
            module.training = True  # it alone: what lies inside may belong to another part
        yield
    finally:
        for weight, wanted in asked.items():
            weight.requires_grad_(wanted)
        for module, mode in modes.items():
            module.training = mode


def first_inputs(data: Data) -> Any:
    """The inputs of the first batch.

    Raises:
        InputError: there is no batch.
    """
    for inputs, _ in data:
        return inputs
    raise InputError("the data gave no batch: give what can be iterated, such as Batches or a list")


def head_modules(net: nn.Module) -> list[nn.Module]:
    """Modules that only heads have: what the trunk uses too stays in the trunk's mode.

    Args:
        net: with its heads in `net.heads`.
    """
    outside = {
        module
        for name, child in net.named_children()
        if name != "heads"
        for module in child.modules()
    }
    return [module for module in net.get_submodule("heads").modules() if module not in outside]
