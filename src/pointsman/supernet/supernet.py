"""A network that holds many: every genotype of its space is a subnet with shared weights."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pointsman.supernet.elastic.dial import Dial, Elastic, dials_of
from pointsman.supernet.space import Genotype, Space


class Supernet(nn.Module):
    """A network with elastic modules inside; the whole network is in force at first.

    Args:
        body: any module that holds `Elastic` modules, such as `OneOf`.

    Raises:
        InputError: nothing in it is elastic.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.training = body.training
        self.space = Space([dial.choice for dial in self.dials])

    @property
    def dials(self) -> tuple[Dial, ...]:
        """In the order of the space's choices."""
        return dials_of(self.body)

    def use(self, genotype: Sequence[int]) -> None:
        """Put a subnet in force; mixtures end.

        Raises:
            InputError: this is no genotype of the space.
        """
        for dial, index in zip(self.dials, self.space.canonical(genotype), strict=True):
            dial.index, dial.mixture = index, None

    @property
    def in_force(self) -> Genotype:
        """The genotype in force."""
        return self.space.canonical([dial.index for dial in self.dials])

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Output of the subnet in force."""
        return self.body(*inputs, **options)

    def extract(self, genotype: Sequence[int]) -> nn.Module:
        """The subnet as an ordinary module with weights of its own.

        Raises:
            InputError: this is no genotype of the space.
        """
        alone = copy.deepcopy(self)
        alone.use(genotype)
        with torch.no_grad():
            return plain_module(alone.body)


def plain_module(module: nn.Module) -> nn.Module:
    """The module itself with every elastic one in it replaced, outer ones first: for a copy."""
    while isinstance(module, Elastic):
        module = module.plain().train(module.training)
    for name, child in list(module.named_children()):
        setattr(module, name, plain_module(child))
    return module
