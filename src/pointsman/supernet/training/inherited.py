"""The quality of a subnet with the weights it inherits from the supernet.

Legend: N inputs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pointsman.modules import evaluating
from pointsman.supernet import recalibration
from pointsman.supernet.scores.agreement import Agreement, rank_agreement
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet


def share_right(outputs: Tensor, targets: Tensor) -> float:
    """Share of (N, classes) logits whose largest entry is at the label (N,)."""
    return float((outputs.argmax(dim=-1) == targets).float().mean())


class InheritedQuality:
    """Genotype to quality, by one evaluation with shared weights: the expensive half of a search.

    A callable for `Problem(space, quality=...)`.

    Args:
        supernet: trained. Which subnet is in force is changed.
        x: inputs of the held-out part.
        y: their targets.
        measure: outputs and targets to a number, higher is better.
        recalibrate: batches of training inputs from which statistics of batch normalisation are
            gathered anew for each subnet; without any, subnets are judged with the mixture that
            training left, and their order may mean little (Guo et al. 2019, arXiv 1904.00420).
    """

    def __init__(
        self,
        supernet: Supernet,
        x: Any,
        y: Any,
        *,
        measure: Callable[[Any, Any], float] = share_right,
        recalibrate: Iterable[Any] = (),
    ) -> None:
        self.supernet, self.x, self.y, self.measure = supernet, x, y, measure
        self.recalibrate = list(recalibrate)

    @torch.no_grad()
    def __call__(self, genotype: Genotype) -> float:
        """Of this subnet; running statistics are put back afterwards."""
        self.supernet.use(genotype)
        norms = [m for m in self.supernet.modules() if isinstance(m, _BatchNorm)]
        kept = [{k: v.clone() for k, v in norm.named_buffers()} for norm in norms]
        try:
            if self.recalibrate:
                recalibration.recalibrate(self.supernet, self.recalibrate)
            with evaluating(self.supernet):
                return self.measure(self.supernet(self.x), self.y)
        finally:
            for norm, buffers in zip(norms, kept, strict=True):
                for name, values in buffers.items():
                    norm.get_buffer(name).copy_(values)


def ranking(
    quality: Callable[[Genotype], float], truth: dict[Genotype, float]
) -> tuple[Agreement, dict[Genotype, float]]:
    """How a quality orders networks whose truth is known, and the values it gave them.

    Args:
        quality: of a genotype, such as an `InheritedQuality`.
        truth: of genotypes, such as accuracies of networks trained alone.

    Raises:
        InputError: fewer than two finite values.
    """
    found = {genotype: quality(genotype) for genotype in truth}
    return rank_agreement(list(found.values()), list(truth.values())), found
