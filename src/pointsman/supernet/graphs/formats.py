"""Number formats as choices: bits of a layer's weights, and of what goes into it.

Zhao et al., "Learned Low Precision Graph Neural Networks" (2020, arXiv 2009.09232): the format of
the weights and of the activations of every component is chosen with the architecture, by the same
relaxation. A format is an operation like any other (`OneOf`): on the weight, it stands in a
parametrisation of the layer; on the inputs, before it.

Rounding is that of `elastic.quantised`, with one scale for each output of a weight and for each
node of an activation, so that the growth of activations with a node's degree does not matter.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pointsman.errors import InputError
from pointsman.supernet.binary.layers import sign
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.quantised import FULL, Rounding
from pointsman.supernet.space import Genotype, Space

FORMATS = (1, 2, 4, 8, FULL)
WEIGHTS, INPUTS = "weight bits", "input bits"


class Signs(nn.Module):
    """(N, ...) as signs times the mean size of each of N: one bit a value."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; gradients as of `binary.layers.sign`."""
        scale = x.detach().abs().flatten(1).mean(dim=1).view(-1, *[1] * (x.ndim - 1))
        return scale * sign(x / scale.clamp_min(torch.finfo(x.dtype).tiny))


def format_choice(name: str, formats: Sequence[int] = FORMATS) -> OneOf:
    """One of several numbers of bits for (N, ...), as a place in a network or on a weight.

    Args:
        name: of the choice; its options are "1", "2", ...
        formats: bits; 1 are signs, 32 leave the values as they are.
    """
    return OneOf(name, {str(bits): Signs() if bits == 1 else Rounding(bits) for bits in formats})


def searchable_formats(
    network: nn.Module, formats: Sequence[int] = FORMATS, *, inputs: bool = True
) -> dict[str, int]:
    """Make the formats of every linear layer choices, in place.

    The choices are named after the layer: "0.linear weight bits" and "0.linear input bits". One of
    bits that stays out of the search is a list of one format.

    Args:
        network: any module with `nn.Linear` in it, to be made a `Supernet` afterwards.
        formats: bits on offer.
        inputs: the activations that enter a layer too.

    Returns:
        Numbers in each weight, by the name of its choice.

    Raises:
        InputError: no linear layer inside it, other than those that have formats already.
    """
    layers = dict(network.named_modules()).items()
    found = {name: layer for name, layer in layers if type(layer) is nn.Linear and name}
    if not found:
        raise InputError("formats are chosen for the linear layers in a network, here is none")
    sizes = {}
    for name, layer in found.items():
        choice = f"{name} {WEIGHTS}"
        sizes[choice] = layer.weight.numel()
        parametrize.register_parametrization(layer, "weight", format_choice(choice, formats))
        if inputs:
            entering = format_choice(f"{name} {INPUTS}", formats)
            network.set_submodule(name, nn.Sequential(OrderedDict(entering=entering, linear=layer)))
    return sizes


def format_costs(
    space: Space, sizes: Mapping[str, int], *, inputs: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Bits that every option of every choice takes: bits a number times numbers; else nothing.

    What `relax.ExpectedCost` takes. Choices without a size, such as operations, cost nothing.

    Args:
        space: of the supernet.
        sizes: numbers in each weight, by choice.
        inputs: numbers that enter a layer, by choice, to count the buffers as well.
    """
    counted = {**sizes, **(inputs or {})}
    return {
        choice.name: [
            float(int(option) * counted[choice.name]) if choice.name in counted else 0.0
            for option in choice.options
        ]
        for choice in space.choices
    }


def model_bits(space: Space, genotype: Genotype, sizes: Mapping[str, int]) -> int:
    """Sum over weights of bits times numbers; what is not in `sizes` is not counted."""
    taken = space.decode(genotype)
    return sum(int(taken[name]) * size for name, size in sizes.items())
