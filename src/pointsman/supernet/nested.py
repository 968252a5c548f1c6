"""One network whose prefixes are networks: any budget takes its prefix, without search.

Every elastic layer keeps its units in a fixed order, and the sub-network at width `w` (a share in
(0, 1]) uses the first `ceil(w * units)` of each. All widths share the weights and are trained
together, one sampled width a step (SortedNet: Valipour et al. 2023, arXiv 2309.00255; slicing of
convolutions as in slimmable networks, Yu et al. 2018, arXiv 1812.08928, from which the separate
batch statistics for each width are taken as well). It is a supernet with one choice; for more,
such as a width for each layer, see `supernet.make_elastic`.

Where we depart from the paper: widths only (depth belongs to exits), and batch normalisation keeps
statistics for each width, which the paper does not settle.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.space import Choice
from pointsman.supernet.supernet import plain_module


def units_at(width: float, units: int) -> int:
    """Units of a layer that the sub-network of this width uses: at least one."""
    return max(1, math.ceil(width * units - 1e-9))


class _Prefix(nn.Module, ABC):
    """What the elastic layers share: the dial of the width, and which of their sides it cuts."""

    def __init__(self, elastic_in: bool, elastic_out: bool) -> None:
        super().__init__()
        self.elastic_in = elastic_in
        self.elastic_out = elastic_out
        self.dial: Dial | None = None  # a layer that is in no nested network is whole

    @property
    def width(self) -> float:
        """The share in force."""
        return 1.0 if self.dial is None else float(self.dial.value)

    def dials(self) -> tuple[Dial, ...]:
        """The width, shared by all layers of a nested network."""
        return () if self.dial is None else (self.dial,)

    def _in(self, units: int) -> int:
        return units_at(self.width, units) if self.elastic_in else units

    def _out(self, units: int) -> int:
        return units_at(self.width, units) if self.elastic_out else units

    @abstractmethod
    def plain(self) -> nn.Module:
        """An ordinary layer with a copy of the weights of the width in force."""


class PrefixLinear(_Prefix):
    """Linear map (..., in) → (..., out) of which a prefix of inputs and outputs can be used."""

    def __init__(self, layer: nn.Linear, *, elastic_in: bool = True, elastic_out: bool = True):
        super().__init__(elastic_in, elastic_out)
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def _cut(self) -> tuple[Tensor, Tensor | None]:
        rows, columns = self._out(self.weight.shape[0]), self._in(self.weight.shape[1])
        return self.weight[:rows, :columns], None if self.bias is None else self.bias[:rows]

    def forward(self, x: Tensor) -> Tensor:
        """(..., units in use) → (..., units in use)."""
        return functional.linear(x, *self._cut())

    def plain(self) -> nn.Module:
        """An `nn.Linear` with a copy of the weights in use."""
        weight, bias = self._cut()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        return _with_weights(layer, weight, bias)


class PrefixConv2d(_Prefix):
    """2-D convolution of which a prefix of channels can be used; groups: 1, or one a channel."""

    def __init__(self, layer: nn.Conv2d, *, elastic_in: bool = True, elastic_out: bool = True):
        super().__init__(elastic_in, elastic_out)
        self.depthwise = layer.groups > 1
        sizes = (layer.in_channels, layer.out_channels)
        if self.depthwise and (sizes != (layer.groups,) * 2 or elastic_in != elastic_out):
            raise InputError(
                "an elastic convolution has groups of 1, or one for each of equally many channels "
                f"in and out, which scale together, got groups={layer.groups} for {sizes[0]} "
                f"channels in and {sizes[1]} out, elastic_in={elastic_in}, "
                f"elastic_out={elastic_out}"
            )
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise InputError(
                f"an elastic convolution pads with a number of zeros, got padding="
                f"{layer.padding!r}, padding_mode={layer.padding_mode!r}"
            )
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.stride = _pair(layer.stride)
        self.padding, self.dilation = _pair(layer.padding), _pair(layer.dilation)

    def _cut(self) -> tuple[Tensor, Tensor | None]:
        rows = self._out(self.weight.shape[0])
        columns = self.weight.shape[1] if self.depthwise else self._in(self.weight.shape[1])
        return self.weight[:rows, :columns], None if self.bias is None else self.bias[:rows]

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels in use, H, W) → (n, channels in use, H', W')."""
        weight, bias = self._cut()
        groups = x.shape[1] if self.depthwise else 1
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def plain(self) -> nn.Module:
        """An `nn.Conv2d` with a copy of the weights in use."""
        weight, bias = self._cut()
        groups = weight.shape[0] if self.depthwise else 1
        layer = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            self.stride,
            self.padding,
            self.dilation,
            groups,
            bias=bias is not None,
        )
        return _with_weights(layer, weight, bias)


class PrefixBatchNorm2d(_Prefix):
    """Batch normalisation with shared scale and shift, and running statistics for each width."""

    def __init__(
        self, layer: nn.BatchNorm2d, widths: Sequence[float], *, elastic: bool = True
    ) -> None:
        super().__init__(elastic, elastic)
        if layer.weight is None or layer.running_mean is None or layer.momentum is None:
            raise InputError(
                "an elastic batch normalisation is affine and tracks its statistics with a "
                f"momentum, got {layer}"
            )
        units = layer.num_features
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.eps, self.momentum = layer.eps, layer.momentum
        self.widths = tuple(widths)
        self.means: Tensor
        self.variances: Tensor
        self.register_buffer("means", layer.running_mean.repeat(len(self.widths), 1))
        assert layer.running_var is not None
        self.register_buffer("variances", layer.running_var.repeat(len(self.widths), 1))
        self.units = units

    def _cut(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row, units = self.widths.index(self.width), self._out(self.units)
        return (
            self.means[row, :units],
            self.variances[row, :units],
            self.weight[:units],
            self.bias[:units],
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels in use, H, W) → the same shape, normalised."""
        return functional.batch_norm(
            x, *self._cut(), training=self.training, momentum=self.momentum, eps=self.eps
        )

    def plain(self) -> nn.Module:
        """An `nn.BatchNorm2d` with a copy of the weights and of the statistics of the width."""
        mean, variance, weight, bias = self._cut()
        layer = nn.BatchNorm2d(len(mean), eps=self.eps, momentum=self.momentum)
        layer.running_mean, layer.running_var = mean.clone(), variance.clone()
        return _with_weights(layer, weight, bias)


class PrefixLayerNorm(_Prefix):
    """Layer normalisation over the units in use."""

    def __init__(self, layer: nn.LayerNorm, *, elastic: bool = True) -> None:
        super().__init__(elastic, elastic)
        if len(layer.normalized_shape) != 1 or layer.weight is None:
            raise InputError("an elastic layer normalisation is affine, over the last dimension")
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.eps = layer.eps

    def _cut(self) -> tuple[Tensor, Tensor | None]:
        units = self._out(len(self.weight))
        return self.weight[:units], None if self.bias is None else self.bias[:units]

    def forward(self, x: Tensor) -> Tensor:
        """(..., units in use) → the same shape, normalised."""
        weight, bias = self._cut()
        return functional.layer_norm(x, (len(weight),), weight, bias, self.eps)

    def plain(self) -> nn.Module:
        """An `nn.LayerNorm` with a copy of the weights in use."""
        weight, bias = self._cut()
        layer = nn.LayerNorm(len(weight), eps=self.eps, bias=bias is not None)
        return _with_weights(layer, weight, bias)


class Nested(nn.Module):
    """A network that runs at any of its widths; every narrower one is a prefix of the wider ones.

    Args:
        body: a module that holds elastic layers (`PrefixLinear`, ...), or an ordinary module, whose
            layers are then made elastic by `prefix_layers`.
        widths: shares in (0, 1], each one sub-network; 1 is the whole network and must be there.

    Raises:
        InputError: a width outside (0, 1], 1 missing, a body that `prefix_layers` refuses, or batch
            normalisation without one of the widths.
    """

    def __init__(self, body: nn.Module, widths: Sequence[float]) -> None:
        super().__init__()
        self.widths = tuple(sorted(float(width) for width in widths))
        if len(set(self.widths)) != len(self.widths) or not all(0 < w <= 1 for w in self.widths):
            raise InputError(f"widths are distinct shares in (0, 1], got {tuple(widths)}")
        if 1.0 not in self.widths:
            raise InputError(f"the whole network, width 1.0, must be a width, got {tuple(widths)}")
        if not any(isinstance(layer, _Prefix) for layer in body.modules()):
            body = prefix_layers(body, self.widths)
        self.dial = Dial(Choice("width", self.widths))
        for layer in body.modules():
            if isinstance(layer, _Prefix):
                layer.dial = self.dial
            if isinstance(layer, PrefixBatchNorm2d) and not set(self.widths) <= set(layer.widths):
                raise InputError(
                    "a batch normalisation keeps statistics for every width of its network, "
                    f"{self.widths}, got one for {layer.widths}: build it with the same widths"
                )
        self.body = body

    def forward(self, x: Tensor, width: float = 1.0) -> Any:
        """Output of the sub-network of this width, one of `widths`.

        Raises:
            InputError: a width that this network was not built with.
        """
        self._set(width)
        return self.body(x)

    def _set(self, width: float) -> None:
        if width not in self.widths:
            raise InputError(f"this network has the widths {self.widths}, got {width}")
        self.dial.index = self.widths.index(width)

    def extract(self, width: float) -> nn.Module:
        """The sub-network of this width as an ordinary module with weights of its own.

        Raises:
            InputError: a width that this network was not built with.
        """
        self._set(width)
        with torch.no_grad():
            return plain_module(copy.deepcopy(self).body)


def prefix_layers(module: nn.Module, widths: Sequence[float] = (1.0,)) -> nn.Module:
    """A copy of a module whose linear, convolution and normalisation layers are elastic.

    All hidden sizes scale together. The first weighted layer keeps its inputs and the last one its
    outputs, in order of definition, so definition must follow the order of use.

    Args:
        module: a stack of layers, residual or not.
        widths: the widths for which batch normalisation keeps statistics.

    Raises:
        InputError: fewer than two weighted layers (there is no hidden size to cut), a layer that
            cannot be cut, or one that stands in two places.
    """
    _check_layers(module)
    weighted = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if len(weighted) < 2:
        raise InputError(
            "an elastic network needs a hidden size between two linear or convolution layers, "
            f"got {len(weighted)} such layers"
        )
    last, placed = len(weighted) - 1, 0

    def elastic(layer: nn.Module) -> nn.Module | None:
        nonlocal placed
        if isinstance(layer, nn.Linear | nn.Conv2d):
            sides = {"elastic_in": placed > 0, "elastic_out": placed < last}
            placed += 1
            if isinstance(layer, nn.Linear):
                return PrefixLinear(layer, **sides)
            return PrefixConv2d(layer, **sides)
        hidden = 0 < placed <= last  # a normalisation of the inputs or the outputs keeps them all
        if isinstance(layer, nn.BatchNorm2d):
            return PrefixBatchNorm2d(layer, widths, elastic=hidden)
        return PrefixLayerNorm(layer, elastic=hidden) if isinstance(layer, nn.LayerNorm) else None

    return _map_layers(copy.deepcopy(module), elastic)


def _check_layers(module: nn.Module) -> None:
    """Refuse layers with weights that do not become elastic: a narrow width could not pass them."""
    seen: set[nn.Module] = set()
    for name, layer in module.named_modules(remove_duplicate=False):
        if not layer._parameters and not layer._buffers:
            continue
        if type(layer) not in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm):
            raise InputError(
                "the layers of an elastic network are nn.Linear, nn.Conv2d, nn.BatchNorm2d and "
                f"nn.LayerNorm, got {type(layer).__name__} at {name or 'the top'!r}: leave it out, "
                "or build the elastic layers yourself"
            )
        if layer in seen:
            raise InputError(
                f"a layer of an elastic network stands in one place, {name!r} is used before: "
                "give it weights of its own"
            )
        seen.add(layer)


def _map_layers(module: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace every layer for which `change` gives another, in order of definition."""
    changed = change(module)
    if changed is not None:
        return changed
    for name, child in module.named_children():
        setattr(module, name, _map_layers(child, change))
    return module


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    high, wide = size
    return high, wide


def _with_weights(layer: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight.data = weight.detach().clone()
    if bias is not None:
        layer.bias.data = bias.detach().clone()
    module: nn.Module = layer
    return module
