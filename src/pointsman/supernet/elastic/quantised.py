"""A layer whose weights and inputs are rounded to as many bits as a dial says.

Simulated ("fake") quantisation (Jacob et al. 2017, arXiv 1712.05877), symmetric and uniform: the
values stay floating point numbers, on the 2^bits - 1 levels around zero that the largest of them
spans: of a row of the weights (one an output in torch's layers), or of one input of the batch.
Gradients go straight through the rounding (Bengio et al. 2013, arXiv 1308.3432). What it saves is
the memory of weights and, on a device with integer kernels, time; torch's own kernels run in
floating point.
"""

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial

FULL = 32  # bits at which nothing is rounded


def fake_quantise(x: Tensor, bits: int) -> Tensor:
    """(N, ...) rounded for each of N by its largest magnitude; gradients pass as they are.

    Args:
        x: any floating point values.
        bits: at least 2; 32: as they are.

    Raises:
        InputError: fewer than 2 bits.
    """
    if bits >= FULL:
        return x
    if bits < 2:
        raise InputError(f"values are rounded to 2 bits or more, got {bits}")
    levels = 2 ** (bits - 1) - 1
    most = x.detach().flatten(1).abs().amax(dim=1) if x.ndim > 1 else x.detach().abs().amax()[None]
    step = (most / levels).clamp_min(torch.finfo(x.dtype).tiny)
    step = step.view(-1, *[1] * (x.ndim - 1))
    rounded: Tensor = x + ((x.detach() / step).round() * step - x.detach())
    return rounded


class Rounding(nn.Module):
    """(N, ...) rounded to so many bits, each of N by its largest magnitude."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return fake_quantise(x, self.bits)

    def extra_repr(self) -> str:
        """Shown where the module is printed."""
        return f"bits={self.bits}"


class Quantised(nn.Module):
    """A layer with its weights and inputs rounded.

    Args:
        layer: has a `weight` and takes one tensor.
        dial: its options are bits.
        activations: round the inputs (N, ...) as well.
    """

    def __init__(self, layer: nn.Module, dial: Dial, *, activations: bool = True) -> None:
        super().__init__()
        self.layer = layer
        self.dial = dial
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives."""
        bits = int(self.dial.value)
        store = self.layer._parameters
        whole = store["weight"]
        assert whole is not None
        store["weight"] = fake_quantise(whole, bits)  # type: ignore[assignment]
        try:
            out: Tensor = self.layer(fake_quantise(x, bits) if self.activations else x)
        finally:
            store["weight"] = whole
        return out

    def dials(self) -> tuple[Dial, ...]:
        """The bits."""
        return (self.dial,)

    def plain(self) -> nn.Module:
        """The layer with rounded weights, after a module that rounds its inputs."""
        bits = int(self.dial.value)
        if bits >= FULL:
            return self.layer
        weight = self.layer._parameters["weight"]
        assert weight is not None
        self.layer.weight = nn.Parameter(fake_quantise(weight.detach(), bits), weight.requires_grad)
        return nn.Sequential(Rounding(bits), self.layer) if self.activations else self.layer
