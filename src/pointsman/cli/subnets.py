"""The subnets of a supernet on a data set: how good each is, and what each costs.

Legend: N inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.compare.data import Dataset, Kind, split
from pointsman.compare.judging import judge
from pointsman.compare.prepare import Preparation
from pointsman.cost import flops_per_input
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

BATCH = 256
UNITS = {"flops": "MFLOPs", "parameters": "k parameters"}
NORMALISED = 8  # batches of the training part, for statistics of batch norms


@dataclass(eq=False)
class Subnets:
    """A supernet with the parts of a data set, as tensors; can be pickled.

    Args:
        supernet: trained.
        kind: of the data.
        inputs: by part, (N, ...).
        targets: by part.
        device: where it runs.
    """

    supernet: Supernet
    kind: Kind
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    device: str
    _costs: dict[tuple[str, Genotype], float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, supernet: Supernet, data: Dataset, seed: int, *, standardise: bool, device: str
    ) -> "Subnets":
        """The four parts of a data set, as the network takes them.

        Args:
            supernet: trained.
            data: is split as compare splits it.
            seed: of the split.
            standardise: whether features and pixels are, by the training part; else they stay as
                they are in the file.
            device: where it runs.

        Raises:
            InputError: too few rows, or no such device.
        """
        parts = split(data, seed)
        prepared = Preparation.fit(data.kind, parts["train"].x)
        if not standardise and data.kind != "text":
            size = prepared.mean.shape
            prepared = Preparation(data.kind, torch.zeros(size), torch.ones(size))
        try:
            supernet = supernet.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device {device}: this device cannot be used here") from error
        inputs = {name: prepared.inputs(part.x).to(device) for name, part in parts.items()}
        targets = {name: prepared.targets(part).to(device) for name, part in parts.items()}
        return cls(supernet, data.kind, inputs, targets, device)

    def quality(self, genotype: Genotype) -> float:
        """Mean on the validation part: what a search looks at."""
        return float(self.qualities(genotype, "validation").mean())

    def qualities(self, genotype: Genotype, part: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(N,) in [0, 1], of a part's inputs."""
        self.supernet.use(genotype)
        self._normalise()
        found = []
        with evaluating(self.supernet), torch.no_grad():
            for x, y in zip(
                self.inputs[part].split(BATCH), self.targets[part].split(BATCH), strict=True
            ):
                found.append(judge(self.supernet(x), y, self.kind)[0].double().cpu().numpy())
        return np.concatenate(found)

    def cost(self, which: str, genotype: Genotype) -> float:
        """Counted once a genotype: per input (per token for text) in `UNITS`."""
        key = (which, genotype)
        if key not in self._costs:
            self._costs[key] = (self._flops if which == "flops" else self._size)(genotype)
        return self._costs[key]

    def _flops(self, genotype: Genotype) -> float:
        self.supernet.use(genotype)
        example = self.inputs["validation"][:1]
        counted = float(flops_per_input(self.supernet, example))
        return counted / example.shape[1] if self.kind == "text" else counted

    def _size(self, genotype: Genotype) -> float:
        return sum(p.numel() for p in self.supernet.extract(genotype).parameters()) / 1e3

    def _normalise(self) -> None:
        """Statistics of batch norms as this subnet has them, from the training part."""
        norms = [
            module
            for module in self.supernet.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        with evaluating(self.supernet), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over the batches
                norm.train()
            for x in self.inputs["train"][: BATCH * NORMALISED].split(BATCH):
                self.supernet(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


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


def rows_of(subnets: Subnets, genotypes: Sequence[Genotype], part: str) -> np.ndarray[Any, Any]:
    """(genotypes, N) qualities of a part."""
    return np.stack([subnets.qualities(genotype, part) for genotype in genotypes])
