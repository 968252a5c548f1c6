"""Two small spaces of networks of which every member was trained: where a search can be judged.

- Cells: a convolution, one cell of three edges, each with one of five operations, and a linear
  classifier on digits: 125 networks.
- Slices: 64-W1-W2-10 networks with both widths in 8, 16, 24, 32, 48, 64: 36 networks.

Each is trained alone, briefly and alike, and its accuracy on the calibration part (which a search
may look at) and on the test part is kept in `measured/tables`, by `python -m
pointsman.claims.architectures`. A test trains a few of them again.

Legend: N inputs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from pointsman.claims.testbeds import Digits, accuracy, digits, fit, mlp
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.space import Choice, Genotype, Space

EDGES = ("0-1", "0-2", "1-2")
OPERATIONS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3")
CELLS = Space([Choice(edge, OPERATIONS) for edge in EDGES])
WIDTHS = (8, 16, 24, 32, 48, 64)
SLICES = Space([Choice("first", WIDTHS), Choice("second", WIDTHS)])

CELL_CHANNELS = 8
CELL_UPDATES, CELL_RATE = 200, 1e-2
SLICE_UPDATES = 400
NOISE = 0.3  # of the pixels: without it nearly every network is right nearly always
TUNING_SEED = 100  # for whatever a claim tries out before its criterion is fixed
SEEDS = (0, 1, 2, TUNING_SEED)
TABLES = Path(__file__).parent / "measured" / "tables"

Table = dict[Genotype, tuple[float, float]]  # accuracy on the calibration part, on the test part


class Zero(nn.Module):
    """The operation "none": nothing, in the shape of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


def operations(channels: int = CELL_CHANNELS) -> dict[str, nn.Module]:
    """New operations of one edge, by name."""
    return {
        "none": Zero(),
        "skip": nn.Identity(),
        "conv1x1": _convolution(channels, 1),
        "conv3x3": _convolution(channels, 3),
        "avgpool3x3": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    }


def _convolution(channels: int, size: int) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels),
    )


class Cell(nn.Module):
    """Three nodes: the input, one after edge 0-1, and the sum of edges 0-2 and 1-2."""

    def __init__(self, edges: dict[str, nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleDict(edges)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) → the same shape."""
        middle = self.edges["0-1"](x)
        out: Tensor = self.edges["0-2"](x) + self.edges["1-2"](middle)
        return out


def cell_network(seed: int, edge: Callable[[str], nn.Module] | None = None) -> nn.Sequential:
    """A cell between a convolution and a classifier, on digits as rows of 64 pixels.

    Args:
        seed: of the weights.
        edge: makes the module of an edge; None: a `OneOf` with every operation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = edge or (lambda name: OneOf(name, operations()))
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, CELL_CHANNELS, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(CELL_CHANNELS),
            Cell({name: make(name) for name in EDGES}),
            nn.BatchNorm2d(CELL_CHANNELS),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * CELL_CHANNELS, 10),
        )


def single_cell(genotype: Genotype, seed: int) -> nn.Sequential:
    """A network of the space of cells, alone."""
    taken = CELLS.decode(genotype)
    return cell_network(seed, lambda name: operations()[str(taken[name])])


def cell_parameters(genotype: Genotype) -> int:
    """Of the operations in the cell: what a search is to keep low."""
    return sum(CELL_COSTS[str(name)] for name in CELLS.decode(genotype).values())


CELL_COSTS = {
    "none": 0,
    "skip": 0,
    "conv1x1": CELL_CHANNELS**2 + 2 * CELL_CHANNELS,
    "conv3x3": 9 * CELL_CHANNELS**2 + 2 * CELL_CHANNELS,
    "avgpool3x3": 0,
}


def single_slice(genotype: Genotype, seed: int) -> nn.Sequential:
    """A network of the space of slices, alone."""
    taken = SLICES.decode(genotype)
    return mlp(64, int(taken["first"]), int(taken["second"]), 10, seed=seed)


def slice_parameters(genotype: Genotype) -> int:
    """Weights and biases of a member of the space of slices."""
    first, second = (int(width) for width in SLICES.decode(genotype).values())
    return 64 * first + first + first * second + second + 10 * second + 10


def noisy_digits(seed: int) -> Digits:
    """The data of both spaces."""
    return digits(seed, NOISE)


def train_cell(network: nn.Module, seed: int, updates: int = CELL_UPDATES) -> Digits:
    """The schedule of every single cell; gives the data it used."""
    data = noisy_digits(seed)
    fit(network, data.train, seed=seed, updates=updates, rate=CELL_RATE, noise=NOISE)
    return data


def train_slice(network: nn.Module, seed: int, updates: int = SLICE_UPDATES) -> Digits:
    """The schedule of every single slice; gives the data it used."""
    data = noisy_digits(seed)
    fit(network, data.train, seed=seed, updates=updates, noise=NOISE)
    return data


def judged(network: nn.Module, data: Digits) -> tuple[float, float]:
    """Accuracy on the calibration and on the test part."""
    with torch.no_grad():
        return tuple(  # type: ignore[return-value]
            accuracy(network(part.x), part.y) for part in (data.calibration, data.test)
        )


def cell_table(seed: int) -> Table:
    """Accuracies of all 125 cells trained with this seed, one of `SEEDS`."""
    return _table("cells", seed)


def slice_table(seed: int) -> Table:
    """Accuracies of all 36 slices trained with this seed, one of `SEEDS`."""
    return _table("slices", seed)


@cache
def _table(name: str, seed: int) -> Table:
    rows = json.loads((TABLES / f"{name}-{seed}.json").read_text())
    return {tuple(genotype): (float(a), float(b)) for genotype, a, b in rows}


def _trained(name: str, seed: int) -> Iterator[tuple[Genotype, float, float]]:
    cells = name == "cells"
    for genotype in (CELLS if cells else SLICES).enumerate():
        network = (single_cell if cells else single_slice)(genotype, seed)
        data = (train_cell if cells else train_slice)(network, seed)
        yield genotype, *judged(network, data)


def main() -> None:
    """Train every member of both spaces with every seed and write the tables."""
    TABLES.mkdir(exist_ok=True)
    for seed in [int(given) for given in sys.argv[1:]] or SEEDS:
        for name in ("slices", "cells"):
            rows = [[list(g), round(a, 5), round(b, 5)] for g, a, b in _trained(name, seed)]
            lines = ",\n".join(json.dumps(row) for row in rows)
            (TABLES / f"{name}-{seed}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
