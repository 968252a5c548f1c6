"""Feed-forward experts on a GPU: torch's grouped matrix product, one launch for all experts.

Legend: N routed rows sorted by expert, E experts, D width (of the answers on the way down),
F hidden width of one expert, which counts twice on the way up of gated experts, gate first.

Nothing here makes the host wait: how many rows an expert has stays on the device.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

from pointsman.moe.experts.reference import Activation


def fits(rows_ND: Tensor, up_EFD: Tensor, down_EDF: Tensor) -> bool:
    """Whether the product takes these: bfloat16, and rows that begin at multiples of 16 bytes."""
    widths = (*up_EFD.shape[1:], *down_EDF.shape[1:])
    return rows_ND.dtype == torch.bfloat16 and all(width % 8 == 0 for width in widths)


def by_grouped_mm(
    rows_ND: Tensor,
    offsets: Tensor,
    up_EFD: Tensor,
    bias_EF: Tensor | None,
    down_EDF: Tensor,
    activation: Activation,
    gated: bool,
) -> Tensor:
    """As `by_loop`, where `fits`; `offsets` (E + 1,) may be on any device."""
    ends_E = offsets[1:].int()
    hidden = _products(rows_ND, up_EFD, ends_E)
    if bias_EF is not None:
        counts_E = torch.diff(offsets)
        hidden = hidden + bias_EF.repeat_interleave(counts_E, dim=0, output_size=rows_ND.shape[0])
    if gated:
        gate, plain = hidden.chunk(2, dim=1)
        hidden = activation(gate) * plain
    else:
        hidden = activation(hidden)
    return _products(hidden, down_EDF, ends_E)


def _products(rows: Tensor, weights: Tensor, ends_E: Tensor) -> Tensor:
    answers: Tensor = _Dense.apply(  # type: ignore[no-untyped-call]
        grouped_mm(rows, weights.transpose(1, 2), offs=ends_E)
    )
    return answers


class _Dense(torch.autograd.Function):
    """Does nothing, and lays gradients out in memory: the product refuses those of `y.sum()`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous()
