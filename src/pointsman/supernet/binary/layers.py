"""Layers with weights and inputs of +1 and -1, trained through the sign.

Courbariaux et al., "Binarized neural networks" (2016, arXiv 1602.02830): real weights are kept for
training, the layer uses their signs, and the gradient passes the sign as if it were the identity
where the real number lies in [-1, 1]. The scale of an output is the mean size of its real weights
(Rastegari et al., "XNOR-Net", 2016, arXiv 1603.05279).

Legend: T inputs, O outputs, N positions of an output's weight (channels times filter positions).
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError


def sign(x: Tensor) -> Tensor:
    """+1 where x is 0 or more, else -1; the gradient of clamp(x, -1, 1)."""
    signs = torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
    clipped = x.clamp(-1, 1)
    return clipped + (signs - clipped).detach()


class Binary(nn.Module):
    """A linear layer or convolution that multiplies signs by signs, and scales each output.

    Args:
        layer: whose weight is trained on as the real weight; stays as it is. Without bias: put a
            normalisation after it, whose shift serves.
        inputs: whether inputs are brought to signs as well. Padding pads with zeros after that.

    Raises:
        InputError: a bias, groups, or padding by anything but zeros.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, *, inputs: bool = True) -> None:
        super().__init__()
        grouped = isinstance(layer, nn.Conv2d) and (
            layer.groups > 1 or layer.padding_mode != "zeros"
        )
        if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.bias is not None or grouped:
            raise InputError(
                "a binary layer is made of nn.Linear or nn.Conv2d without bias and groups that "
                f"pads with zeros, got {layer}"
            )
        self.layer = copy.deepcopy(layer)
        self.inputs = inputs

    @property
    def signs(self) -> Tensor:
        """(O, N) of +1 and -1, with the gradient of the real weights."""
        return sign(self.layer.weight).flatten(1)

    @property
    def scale(self) -> Tensor:
        """(O,) mean size of the real weights of each output; a constant for the gradient."""
        size_O: Tensor = self.layer.weight.detach().abs().flatten(1).mean(dim=1)
        return size_O

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, of the same shape."""
        x = sign(x) if self.inputs else x
        scaled = sign(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, scaled) * self.scale
        summed: Tensor = self.layer._conv_forward(x, scaled, None)
        return summed * self.scale[:, None, None]


def make_binary(net: nn.Module, *, keep: Collection[str] = ()) -> nn.Module:
    """A copy of a network whose linear layers and convolutions without bias are binary.

    Args:
        net: any module.
        keep: names of layers that stay as they are, such as the first and the last one.

    Raises:
        InputError: a name that is no layer of it, nothing left to change, or a layer that cannot.
    """
    changed = copy.deepcopy(net)
    layers = dict(changed.named_modules())
    unknown = sorted(set(keep) - set(layers))
    if unknown:
        raise InputError(f"keep names layers of the network, got {unknown[0]!r}, which is none")
    found = {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name and name not in keep
    }
    if not found:
        raise InputError("there is no linear layer or convolution left to make binary")
    for name, layer in found.items():
        changed.set_submodule(name, Binary(layer).train(net.training))
    return changed
