"""Where the batches of a training run come from.

Legend: N inputs of a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pointsman.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of one update.

    Args:
        x: what the network is called with, (N, ...).
        y: what the loss is called with beside the outputs, (N, ...).
        rows: (N,) which examples of the data these are, where the batches keep account of them.
        weight: (N,) of each example's loss; None: 1.
    """

    x: Any
    y: Any
    rows: Tensor | None = None
    weight: Tensor | None = None


class Batches(Protocol):
    """Gives a batch for each update, and may learn from what the network made of it."""

    def draw(self, done: float) -> Batch:
        """The next batch, when this share of the training is done (0 at first, below 1)."""
        ...

    def learn(self, batch: Batch, outputs: Any) -> None:
        """Called once an update, with the outputs (detached) of its last path."""
        ...


class RandomBatches:
    """Examples drawn uniformly with replacement.

    Args:
        x: (examples, ...) inputs.
        y: (examples, ...) targets.
        size: N.
        seed: of the draws and the noise.
        noise: standard deviation of fresh Gaussian noise on each batch.

    Raises:
        InputError: no example, not as many targets as inputs, or an empty batch asked for.
    """

    def __init__(
        self, x: Tensor, y: Tensor, *, size: int = 128, seed: int = 0, noise: float = 0.0
    ) -> None:
        if not len(x) or len(x) != len(y) or size < 1:
            raise InputError(
                "batches are drawn from at least one example, each with a target, at least one at "
                f"a time, got {len(x)} inputs, {len(y)} targets, size={size}"
            )
        self.x, self.y, self.size, self.noise = x, y, size, noise
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, done: float) -> Batch:
        """N examples."""
        return self.take(torch.randint(len(self.x), (self.size,), generator=self.generator))

    def take(self, rows_N: Tensor, weight_N: Tensor | None = None) -> Batch:
        """These examples, under fresh noise."""
        x = self.x[rows_N]
        if self.noise > 0:
            x = x + self.noise * torch.randn(x.shape, generator=self.generator).to(x)
        return Batch(x, self.y[rows_N], rows_N, weight_N)

    def learn(self, batch: Batch, outputs: Any) -> None:
        """Nothing: all examples stay equally likely."""


class LoaderBatches:
    """Batches of any iterable of (inputs, targets), such as a torch `DataLoader`, over and over.

    Args:
        loader: is started anew when it has ended.

    Raises:
        InputError: it gives nothing when it is started; when drawn from.
    """

    def __init__(self, loader: Iterable[tuple[Any, Any]]) -> None:
        self.loader = loader
        self._running: Iterator[tuple[Any, Any]] = iter(())

    def draw(self, done: float) -> Batch:
        """The loader's next batch."""
        for _ in range(2):
            for x, y in self._running:
                return Batch(x, y)
            self._running = iter(self.loader)
        raise InputError(
            "a loader gives batches each time it is started, this one gave none (a generator ends "
            "for good: give a list or a DataLoader)"
        )

    def learn(self, batch: Batch, outputs: Any) -> None:
        """Nothing."""
