"""Weights that depend on the subnet: a mixture of experts over weights, routed by the genotype.

Jawahar et al. 2023, "Mixture-of-Supernets: Improving weight-sharing supernet training with
architecture-routed mixture-of-experts", arXiv 2306.04845. A layer holds m sets of weights at its
largest size. A small network reads which options are in force and gives the weights of a mean over
the sets, for the layer or for each output row by itself; the mean is then cut to size like any
weight. A subnet's mean is fixed, so it costs nothing at inference.

Legend: M experts, F features of the genotype, R output rows (units) of a layer.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial, dials_of


class WeightExperts(nn.Module):
    """An elastic network in which some layers' weights are a mean of experts', by the genotype.

    Args:
        body: elastic; its own weights become the first expert of each layer.
        layers: names of modules in it, as `named_modules` gives them, such as the linear maps of
            feed-forward blocks. All else is shared as before.
        experts: M. With 1 it is the network itself.
        by_row: a mean for each output row (the first dimension of every parameter of the layer)
            instead of one for the layer.
        hidden: units of a router's hidden layer.
        seed: of the routers and of the other experts, whose weights are drawn anew where a module
            has `reset_parameters`.

    Raises:
        InputError: nothing elastic in the body, no expert, no layer, one of an unknown name or
            without parameters, or rows of different numbers.
    """

    def __init__(
        self,
        body: nn.Module,
        layers: Sequence[str],
        *,
        experts: int = 2,
        by_row: bool = False,
        hidden: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.body, self.layers, self.experts = body, tuple(layers), experts
        self._dials = dials_of(body)
        if experts < 1 or not self._dials or not self.layers:
            raise InputError(
                "experts of weights are given to layers of an elastic network, got "
                f"experts={experts}, {len(self._dials)} choices and {len(self.layers)} layers"
            )
        features = sum(len(dial.choice.options) for dial in self._dials)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [_Experts(_layer(body, n), experts, by_row, features, hidden) for n in layers]
        self.parts = nn.ModuleList(parts)

    def features(self) -> Tensor:
        """(F,) of 0 and 1: the options in force."""
        parts = [
            nn.functional.one_hot(torch.tensor(dial.index), len(dial.choice.options))
            for dial in self._dials
        ]
        return torch.cat(parts).to(next(self.parts.parameters()))

    def merged(self) -> dict[str, Tensor]:
        """The layers' parameters for the genotype in force, at full size, by name in the body."""
        found: dict[str, Tensor] = {}
        for name, part in zip(self.layers, self.parts, strict=True):
            means = part(self.body.get_submodule(name), self.features())
            found.update((f"{name}.{own}", weight) for own, weight in means.items())
        return found

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Of the body with the merged weights."""
        return torch.func.functional_call(self.body, self.merged(), inputs, options)

    def dials(self) -> tuple[Dial, ...]:
        """All of the body's: the means depend on them."""
        return self._dials

    def plain(self) -> nn.Module:
        """The body with the merged weights, still elastic; to be called on a copy."""
        for name, weight in self.merged().items():
            self.body.get_parameter(name).data = weight.detach().clone()
        return self.body


def _layer(body: nn.Module, name: str) -> nn.Module:
    try:
        return body.get_submodule(name)
    except AttributeError:
        raise InputError(f"a layer is named as in named_modules, got {name!r}") from None


class _Experts(nn.Module):
    """The other experts of one layer, and its router."""

    def __init__(
        self, layer: nn.Module, experts: int, by_row: bool, features: int, hidden: int
    ) -> None:
        super().__init__()
        rows = {len(weight) for weight in layer.parameters()}
        if not rows or (by_row and len(rows) > 1):
            raise InputError(
                "a layer with experts has parameters, of equally many rows where they are mixed "
                f"by row, got {sorted(rows)} rows in a {type(layer).__name__}"
            )
        others = [copy.deepcopy(layer) for _ in range(experts - 1)]
        for module in (module for other in others for module in other.modules()):
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        # Parameters without a forward: the layer's own forward runs with the means.
        self.others = nn.ModuleList(nn.ParameterList(other.parameters()) for other in others)
        self.experts = experts
        out = experts * (max(rows) if by_row else 1)
        self.router = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, layer: nn.Module, features_F: Tensor) -> dict[str, Tensor]:
        """The means of all experts' parameters, by name."""
        shares_MR = self.router(features_F).view(self.experts, -1).softmax(dim=0)
        found: dict[str, Tensor] = {}
        for at, (name, weight) in enumerate(layer.named_parameters()):
            others = [list(other.parameters())[at] for other in self.others]
            stacked = torch.stack([weight, *others])
            shares = shares_MR.view(*shares_MR.shape, *[1] * (weight.ndim - 1))
            found[name] = (shares * stacked).sum(dim=0)
        return found
