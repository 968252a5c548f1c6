"""Batch statistics of a subnet, measured anew.

A supernet has one set of running statistics for all its subnets, which fits none of them: a subnet
is judged after its own have been measured on training inputs (Yu & Huang 2019, arXiv 1903.05134).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.channels import call_with


def recalibrate(module: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of batch normalisation by the mean over these batches.

    Everything else runs in evaluation mode, and no weight changes.

    Args:
        module: a subnet, or a supernet, of which the subnet in force is measured.
        batches: inputs as for `make_elastic`, from the training part; some 10 batches of 100 do.

    Returns:
        How many layers keep statistics; with none, no batch is run.

    Raises:
        InputError: there are such layers, and no batch.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with evaluating(module), torch.no_grad():
        try:
            for norm in norms:
                norm.momentum = None  # the mean of all batches, instead of a moving one
                norm.train()
            for batch in batches:
                if not seen:
                    for norm in norms:
                        norm.reset_running_stats()
                call_with(module, batch)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise InputError("batch statistics are measured on one batch at least, got none")
    return len(norms)
