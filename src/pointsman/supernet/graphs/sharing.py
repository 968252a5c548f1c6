"""Which weights a network may inherit from another of a different architecture.

Zhou et al., "Auto-GNN: Neural Architecture Search of Graph Neural Networks" (2019, arXiv
1909.03184): weights that were trained behind another attention or activation meet outputs of other
statistics, and make the ranking of architectures unstable. They are shared only between layers that
agree in both and in the shapes, and never those of normalisations and skip connections.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pointsman.supernet.graphs.layers import GraphLayer

Named = dict[str, Tensor]


def inherit(child: nn.Module, ancestor: nn.Module) -> list[str]:
    """Copy into a network what it may take from another; names of the parameters copied.

    A parameter is copied if the other network has one of the same name and shape, both stand in
    graph layers of the same attention and activation, and it belongs neither to a normalisation nor
    to a module named "skip".

    Args:
        child: changed in place.
        ancestor: stays as it is.
    """
    theirs = dict(_parameters(ancestor))
    copied = []
    for name, (statistics, parameter) in _parameters(child):
        other = theirs.get(name)
        if other is None or other[0] != statistics or other[1].shape != parameter.shape:
            continue
        with torch.no_grad():
            parameter.copy_(other[1])
        copied.append(name)
    return copied


def _parameters(network: nn.Module) -> Iterator[tuple[str, tuple[tuple[str, str], Tensor]]]:
    """Of all graph layers: name, and the layer's statistics with the parameter."""
    for place, layer in network.named_modules():
        if not isinstance(layer, GraphLayer):
            continue
        for inside, module in layer.named_modules(prefix=place):
            if isinstance(module, _NormBase | nn.LayerNorm) or "skip" in inside.split("."):
                continue
            for name, parameter in module.named_parameters(prefix=inside, recurse=False):
                yield name, (layer.statistics, parameter)
