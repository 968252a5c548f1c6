"""Relaxed searches in the space of cells: the data, schedule and supernet that claims share.

The training part is cut in halves, one for the weights and one for the architecture, and both get
fresh noise. Accuracies come from the table of cells that were trained alone with the data's seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pointsman.claims.architectures import (
    CELL_RATE,
    NOISE,
    OPERATIONS,
    cell_network,
    cell_table,
    noisy_digits,
)
from pointsman.claims.testbeds import Digits
from pointsman.supernet.relax import Node, Relaxation, alternate
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

NEVER = ("none",)
UPDATES, BATCH = 120, 48
ARCHITECTURE_RATE = 2e-2  # larger than the 3e-4 of long searches, as updates are few here
OUTPUT = Node(("0-2", "1-2"), keep=1)  # the one node of a cell at which edges can compete

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Search:
    """One search: the data and table of one seed, weights and batches of another.

    Args:
        data_seed: of the split and of the table of accuracies.
        run: tells searches on one split apart.
    """

    data_seed: int
    run: int

    @cached_property
    def data(self) -> Digits:
        """The split."""
        return noisy_digits(self.data_seed)

    @property
    def seed(self) -> int:
        """Of the weights, the batches and the draws."""
        return 1000 * (self.data_seed + 1) + self.run

    def supernet(self, edge: Callable[[str], nn.Module] | None = None) -> Supernet:
        """A new one with every operation on every edge."""
        return Supernet(cell_network(self.seed, edge))

    def halves(self) -> tuple[Iterator[Batch], Iterator[Batch]]:
        """Endless batches for the weights, and for the architecture."""
        return self.batches(slice(0, 500), 0), self.batches(slice(500, 1000), 1)

    def batches(self, rows: slice, stream: int) -> Iterator[Batch]:
        """Endless batches of a part of the training images, each under noise of its own."""
        x, y = self.data.train.x[rows], self.data.train.y[rows]
        generator = torch.Generator().manual_seed(2 * self.seed + stream)
        while True:
            drawn = torch.randint(len(x), (BATCH,), generator=generator)
            images = x[drawn]
            yield images + NOISE * torch.randn(images.shape, generator=generator), y[drawn]

    def relaxed(
        self,
        supernet: Supernet,
        relaxation: Relaxation,
        *,
        updates: int = UPDATES,
        architecture: torch.optim.Optimizer | None = None,
        **options: Any,
    ) -> None:
        """Search with `alternate`, whose further options may be given."""
        weights = torch.optim.AdamW(supernet.parameters(), CELL_RATE, weight_decay=1e-2)
        alternate(
            supernet,
            relaxation,
            loss,
            *self.halves(),
            updates=updates,
            weights=weights,
            architecture=architecture or architecture_optimiser(relaxation),
            seed=self.seed,
            **options,
        )

    def first_order(self) -> tuple[Supernet, Relaxation]:
        """DARTS of first order: what several claims compare with."""
        supernet = self.supernet()
        relaxation = Relaxation(supernet, never=NEVER, seed=self.seed)
        self.relaxed(supernet, relaxation)
        return supernet, relaxation

    def accuracy(self, genotype: Genotype) -> float:
        """On the test part, of that network trained alone."""
        return cell_table(self.data_seed)[genotype][1]


def architecture_optimiser(relaxation: Relaxation) -> torch.optim.Optimizer:
    """Adam with the momentum and decay that DARTS gives the architecture."""
    return torch.optim.Adam(
        relaxation.parameters(), ARCHITECTURE_RATE, betas=(0.5, 0.999), weight_decay=1e-3
    )


def loss(network: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy."""
    return cross_entropy(network(batch[0]), batch[1])


def skip_share(genotype: Genotype) -> float:
    """Share of skip connections among the edges that are there."""
    taken = [OPERATIONS[index] for index in genotype if OPERATIONS[index] not in NEVER]
    return taken.count("skip") / max(len(taken), 1)


def stored(supernet: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes of activations that are kept for the backward pass of a call, each once."""
    own = {parameter.data_ptr() for parameter in supernet.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = run()
        total = sum(kept.values())
    del alive
    return total
