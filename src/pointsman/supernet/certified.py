"""Subnets as a frontier: each input's quality and each subnet's cost, ready for a certified pick.

Legend: N inputs, S subnets.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.frontier import Frontier, Outcomes
from pointsman.modules import evaluating
from pointsman.supernet.channels import call_with
from pointsman.supernet.costs import Count
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet


def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """(N, classes) logits and (N,) labels to (N,): 1 where the largest logit is at the label."""
    return (outputs.argmax(dim=-1) == targets).float()


def subnet_frontier(
    supernet: Supernet,
    genotypes: Iterable[Genotype],
    x: Any,
    y: Any,
    cost: Count,
    *,
    quality: Callable[[Any, Any], Tensor] = is_right,
    batches: Sequence[Any] = (),
    name: str = "subnets",
) -> Frontier:
    """Quality and cost of subnets on inputs that chose none of them; `pick` certifies one.

    The reference is the whole network. Knobs are genotypes as text, see `genotype_of`, those of
    the dearest subnets first, because a pick tests them in this order.

    Args:
        supernet: trained; is left as it is.
        genotypes: such as the front that a search found on other inputs.
        x: inputs of one call, (N, ...).
        y: their targets.
        cost: such as `count_mflops` gives for one input.
        quality: outputs and targets to (N,) in [0, 1], higher is better.
        batches: training inputs from which batch statistics are measured for each subnet, as for
            `recalibrate`; none: they stay as training left them.
        name: of the frontier.

    Raises:
        InputError: no genotype, or one of another space.
    """
    wanted = {supernet.space.canonical(genotype) for genotype in genotypes}
    if not wanted:
        raise InputError("a frontier has at least one subnet, got none")
    whole = supernet.space.canonical([len(c.options) - 1 for c in supernet.space.choices])
    dearest_first = sorted(wanted, key=lambda genotype: (-cost(genotype), genotype))
    judged = {
        genotype: _judged(supernet, genotype, x, y, quality, batches)
        for genotype in {whole, *dearest_first}
    }
    quality_SN = np.stack([judged[genotype] for genotype in dearest_first])
    cost_SN = np.array([[cost(g)] for g in dearest_first]) + np.zeros_like(quality_SN)
    outcomes = Outcomes(
        knobs=tuple(knob_of(genotype) for genotype in dearest_first),
        quality=quality_SN,
        cost=cost_SN,
        reference_quality=judged[whole],
        reference_cost=np.full(quality_SN.shape[1], cost(whole)),
        unit=cost.unit,
    )
    return Frontier.from_outcomes(name, outcomes)


def knob_of(genotype: Genotype) -> str:
    """Such as "2-0-1"."""
    return "-".join(str(index) for index in genotype)


def genotype_of(knob: str) -> Genotype:
    """The genotype of a knob.

    Raises:
        InputError: this is no knob of a subnet.
    """
    try:
        return tuple(int(index) for index in knob.split("-"))
    except ValueError:
        raise InputError(f'the knob of a subnet looks like "2-0-1", got {knob!r}') from None


def _judged(
    supernet: Supernet,
    genotype: Genotype,
    x: Any,
    y: Any,
    quality: Callable[[Any, Any], Tensor],
    batches: Sequence[Any],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    subnet = supernet.extract(genotype)
    if batches:
        recalibrate(subnet, batches)
    with evaluating(subnet), torch.no_grad():
        found = quality(call_with(subnet, x), y)
    return found.double().numpy(force=True)
