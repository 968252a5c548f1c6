"""The subnets of a supernet on a data set: how good each is, and what each costs.

Legend: N inputs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.compare.data import Dataset, Kind, split
from pointsman.compare.judging import judge
from pointsman.compare.prepare import Preparation
from pointsman.cost import count_flops
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.costs import count_mflops, count_parameters
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

Cost = Callable[[Genotype], float]

BATCH = 256
UNITS = {"flops": "MFLOPs", "parameters": "k parameters"}
NORMALISED = 8  # batches of the training part, for statistics of batch norms


@dataclass(frozen=True, eq=False)
class Parts:
    """The four parts of a data set, as the network takes them.

    Args:
        kind: of the data.
        inputs: by part, (N, ...).
        targets: by part.
    """

    kind: Kind
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]

    @classmethod
    def of(cls, data: Dataset, seed: int, *, standardise: bool, device: str) -> "Parts":
        """Split and prepared as compare does it.

        Args:
            data: to be split.
            seed: of the split.
            standardise: whether features and pixels are, by the training part; else they stay as
                they are in the file.
            device: where the network runs.

        Raises:
            InputError: too few rows, or no such device.
        """
        parts = split(data, seed)
        prepared = Preparation.fit(data.kind, parts["train"].x)
        if not standardise and data.kind != "text":
            size = prepared.mean.shape
            prepared = Preparation(data.kind, torch.zeros(size), torch.ones(size))
        try:
            inputs = {name: prepared.inputs(part.x).to(device) for name, part in parts.items()}
            targets = {name: prepared.targets(part).to(device) for name, part in parts.items()}
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device}: this device cannot be used here") from error
        return cls(data.kind, inputs, targets)

    def judged(self, network: nn.Module, part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) qualities in [0, 1] of a network on a part's inputs."""
        batches = (torch.split(of[part], BATCH) for of in (self.inputs, self.targets))
        found = []
        with evaluating(network), torch.no_grad():
            for x, y in zip(*batches, strict=True):
                found.append(judge(network(x), y, self.kind)[0].double().cpu().numpy())
        return np.concatenate(found)


@dataclass(eq=False)
class Subnets:
    """A supernet with the parts of a data set; can be pickled.

    Args:
        supernet: trained, on the device of the parts.
        parts: of the data.
    """

    supernet: Supernet
    parts: Parts
    _costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def whole(self) -> Genotype:
        """The last option of every choice: the whole network."""
        space = self.supernet.space
        return space.canonical([len(choice.options) - 1 for choice in space.choices])

    def quality(self, genotype: Genotype) -> float:
        """Mean on the validation part: what a search looks at."""
        return float(self.qualities(genotype, "validation").mean())

    def qualities(self, genotype: Genotype, part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) in [0, 1], of a part's inputs."""
        self.supernet.use(genotype)
        train = self.parts.inputs["train"][: BATCH * NORMALISED]
        recalibrate(self.supernet, torch.split(train, BATCH))
        return self.parts.judged(self.supernet, part)

    def cost(self, which: str, genotype: Genotype) -> float:
        """Counted, per input (per token for text), in `UNITS`; infinite if the forward breaks."""
        if which not in self._costs:
            self._costs[which] = self._count(which)
        return self._costs[which](genotype)

    def _count(self, which: str) -> Cost:
        example, text = self.parts.inputs["validation"][:1], self.parts.kind == "text"
        per = 1e3 if which == "parameters" else example.shape[1] if text else 1
        count: Cost
        try:
            if which == "parameters":
                count = count_parameters(self.supernet)
            else:
                count = count_mflops(self.supernet, example)
        except Exception:  # some subnet breaks: each is counted alone, so that others have a cost
            count = _Remembered(partial(_alone, self.supernet, which, example))
        return partial(_divided, count, per)


def _divided(count: Cost, per: float, genotype: Genotype) -> float:
    return count(genotype) / per


class _Remembered:
    """A cost that is counted once a genotype."""

    def __init__(self, count: Cost) -> None:
        self.count = count
        self.known: dict[Genotype, float] = {}

    def __call__(self, genotype: Genotype) -> float:
        if genotype not in self.known:
            self.known[genotype] = self.count(genotype)
        return self.known[genotype]


def _alone(supernet: Supernet, which: str, example: Tensor, genotype: Genotype) -> float:
    try:
        if which == "parameters":
            return float(sum(p.numel() for p in supernet.extract(genotype).parameters()))
        supernet.use(genotype)
        return float(count_flops(supernet, example))
    except Exception:  # its evaluation says what breaks
        return math.inf


def spelled(options: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> str:
    """Options in one line; of a large space only those that are not the whole network's."""
    shown = {k: v for k, v in options.items() if whole is None or whole.get(k) != v}
    return ", ".join(f"{name} {option}" for name, option in shown.items()) or "the whole network"


def budget_of(given: str, whole: float, unit: str) -> float:
    """A budget in the unit of the cost: a number, or a share of the whole network such as "50%".

    Raises:
        InputError: neither.
    """
    text = given.strip().removesuffix(unit).strip()
    try:
        share = float(text.removesuffix("%"))
    except ValueError:
        share = float("nan")
    if not 0 < share < float("inf"):
        raise InputError(
            f'--budget is a number of {unit}, or a share of the whole network such as "50%", '
            f"got {given!r}"
        )
    return whole * share / 100 if text.endswith("%") else share
