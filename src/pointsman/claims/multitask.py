"""Related tasks over the same inputs, for claims on routing by task.

Six regression tasks in three pairs: the two of a pair have nearly the same map, pairs have nothing
in common. Every model is given an embedding of the task added to its input, so that a dense one
knows the task too.

Legend: T inputs, D width, O outputs, G tasks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe import Context

TASKS, WIDTH, OUT, HIDDEN = 6, 16, 16, 32
ALIKE = 0.95  # correlation of the maps of a pair


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks y = tanh(2 x W_g) over standard normal inputs.

    Attributes:
        maps_GDO: W, for inputs of unit variance; the last one is related to no other.
    """

    maps_GDO: Tensor  # noqa: N815

    def draw(self, task_T: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (T, D) and targets (T, O) of these tasks."""
        x_TD = torch.randn(len(task_T), WIDTH, generator=generator)
        every_GTO = x_TD @ self.maps_GDO
        return x_TD, torch.tanh(2 * every_GTO[task_T, torch.arange(len(task_T))])


def tasks(seed: int) -> Tasks:
    """Tasks 0 to 5 in three pairs (0 and 1, 2 and 3, 4 and 5), and task 6 by itself."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(3, 1, WIDTH, OUT, generator=generator)
    own = torch.randn(3, 2, WIDTH, OUT, generator=generator)
    paired = ALIKE * common + (1 - ALIKE**2) ** 0.5 * own
    alone = torch.randn(1, WIDTH, OUT, generator=generator)
    return Tasks(torch.cat([paired.flatten(0, 1), alone]) / WIDTH**0.5)


class Multitask(nn.Module):
    """A body given each input plus an embedding of its task, and the task as context if it asks.

    Args:
        body: module from (T, D) to (T, O), or layers of such that take `context` and return
            (y, Routing).
    """

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TASKS + 1, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.body = nn.ModuleList(body)

    def forward(self, x_TD: Tensor, task_T: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (T, O), and the sum of the balancing losses."""
        y, loss = x_TD + self.embedding(task_T), x_TD.new_zeros(())
        for layer in self.body:
            found: Any = layer(y, context=Context(task=task_T)) if _routed(layer) else layer(y)
            if isinstance(found, tuple):
                y, loss = found[0], loss + found[1].loss
            else:
                y = found
        return y, loss


def fit(
    model: Multitask,
    world: Tasks,
    *,
    seed: int,
    updates: int = 800,
    only: int | None = None,
    rate: float = 3e-3,
) -> None:
    """Train with Adam on batches of 256 over the six tasks, or on one task only."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate, fused=True)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(updates):
            drawn_T = torch.randint(TASKS, (256,), generator=generator)
            task_T = drawn_T if only is None else torch.full_like(drawn_T, only)
            x_TD, y_TO = world.draw(task_T, generator)
            answer_TO, loss = model(x_TD, task_T)
            optimiser.zero_grad()
            (functional.mse_loss(answer_TO, y_TO) + loss).backward()
            optimiser.step()
    model.eval()


@torch.no_grad()
def relative_error(model: Multitask, world: Tasks, *, seed: int, count: int = 6000) -> float:
    """Mean squared error over the variance of the targets, on fresh inputs of the six tasks."""
    task_T = torch.arange(count) % TASKS
    x_TD, y_TO = world.draw(task_T, torch.Generator().manual_seed(1_000_003 + seed))
    return float(functional.mse_loss(model(x_TD, task_T)[0], y_TO) / y_TO.var())


def _routed(layer: nn.Module) -> bool:
    return hasattr(layer, "router")
