"""Heads: what answers at an exit.

A head maker is called once for each exit, with the features there, and gives a module from
features to logits: `EarlyExit(net, at, example=x, heads=partial(hidden_head, hidden=64))`.

Legend: n inputs, S tokens, D width of the features, C classes, V vocabulary.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import State

# features on the example, C -> a module from features to logits
HeadMaker = Callable[[Tensor, int], nn.Module]


class ChannelMean(nn.Module):
    """The mean over all dimensions but the inputs and the channels: (n, D, ...) → (n, D).

    Args:
        channels: which dimension holds the channels.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """The means; features (n, D) pass as they are."""
        if x.ndim <= 2:
            return x
        return x.movedim(self.channels, 1).flatten(2).mean(dim=2)


def pooled_linear(features: Tensor, classes: int, *, channels: int = 1) -> nn.Sequential:
    """Channel means and one linear layer, in the features' dtype and on their device.

    Args:
        features: (n, D, ...), or with the channels in another dimension.
        classes: C.
        channels: the dimension that holds the channels.

    Raises:
        InputError: features of one number per input.
    """
    like = _like(features)
    linear = nn.Linear(features.shape[channels], classes, **like)
    return nn.Sequential(OrderedDict(mean=ChannelMean(channels), linear=linear))


def hidden_head(features: Tensor, classes: int, *, hidden: int, channels: int = 1) -> nn.Sequential:
    """Channel means, one hidden layer with ReLU, and a linear one.

    Args:
        features: as for `pooled_linear`.
        classes: C.
        hidden: units of the hidden layer.
        channels: the dimension that holds the channels.

    Raises:
        InputError: features of one number per input, or no hidden unit.
    """
    like = _like(features)
    if hidden < 1:
        raise InputError(f"a hidden layer has at least one unit, got {hidden}")
    inner = nn.Linear(features.shape[channels], hidden, **like)
    outer = nn.Linear(hidden, classes, **like)
    parts = OrderedDict(mean=ChannelMean(channels), inner=inner, act=nn.ReLU(), linear=outer)
    return nn.Sequential(parts)


def convolution_head(features: Tensor, classes: int, *, width: int, grid: int = 1) -> nn.Sequential:
    """A convolution with stride 2 and batch normalisation, a mean over a grid, a linear layer.

    For maps (n, D, height, width): early ones have few channels and much space, and a mean over all
    of it loses what the places say. After the exits of Huang et al., "Multi-Scale Dense Networks
    for Resource Efficient Image Classification" (2017, arXiv:1703.09844), with one convolution
    instead of two.

    Args:
        features: (n, D, height, width).
        classes: C.
        width: channels of the convolution; multiples of 8 run fast.
        grid: means over grid × grid places, each with weights of its own.

    Raises:
        InputError: features that are no maps, or sizes below 1.
    """
    like = _like(features)
    if features.ndim != 4 or min(width, grid) < 1:
        raise InputError(
            "a convolution head needs features (inputs, channels, height, width), width and grid "
            f"from 1, got {tuple(features.shape)}, {width} and {grid}"
        )
    return nn.Sequential(
        nn.Conv2d(features.shape[1], width, 3, stride=2, padding=1, bias=False, **like),
        nn.BatchNorm2d(width, **like),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(grid),
        nn.Flatten(),
        nn.Linear(width * grid * grid, classes, **like),
    )


class LanguageHead(nn.Module):
    """A norm of its own, then the model's own unembedding: hidden states (n, S, D) → (n, S, V).

    What a language model does after its layers is done on the features of an exit, with copies of
    all of its parts but the unembedding, whose weights are shared and belong to the trunk: they are
    not among the head's parameters. After Elhoushi et al., "LayerSkip" (2024, arXiv:2404.16710);
    there the norm is shared, too.

    Args:
        trunk: a language model as a row of blocks.
        state: of the trunk after its last block, on an example.

    Raises:
        InputError: the model does more after its layers than its modules say, such as scaling.
    """

    def __init__(self, trunk: Trunk, state: State) -> None:
        super().__init__()
        tail, wanted = _tail(trunk, state)
        self.own = nn.Sequential(*(copy.deepcopy(part) for part in tail[:-1]))
        self._unembedding = (tail[-1],)  # a tuple, so that torch does not register it here
        with torch.no_grad(), evaluating(self, tail[-1]):
            found = self(trunk.features(state))
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4):
            names = ", ".join(type(part).__name__ for part in tail)
            raise InputError(
                f"after its layers the model does more than run {names}: give heads of your own"
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, S, D) → (n, S, V)."""
        logits: Tensor = self._unembedding[0](self.own(hidden))
        return logits


def language_heads(trunk: Trunk, state: State, count: int) -> list[LanguageHead]:
    """One `LanguageHead` for each of the early exits of a language model.

    Args:
        trunk: the model.
        state: of the trunk after its last block, on an example.
        count: of early exits.

    Raises:
        InputError: see `LanguageHead`.
    """
    return [LanguageHead(trunk, state) for _ in range(count)]


def _tail(trunk: Any, state: State) -> tuple[list[nn.Module], Tensor]:
    """The innermost modules that lead from the hidden states to the logits, and the logits."""
    last: Tensor = trunk.features(state)
    found: list[nn.Module] = []
    kept = [last]  # nothing is freed meanwhile, so that no two tensors share a place

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before = kept[-1]
        takes = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if takes and args[0].data_ptr() == before.data_ptr() and args[0].numel() == before.numel():
            found.append(module)
            kept.append(output)

    leaves = [module for module in trunk.modules() if not list(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        with evaluating(trunk), torch.no_grad():
            logits = trunk.finish(state)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InputError(
            f"no module of {type(trunk).__name__} takes what its last block gives: give heads of "
            "your own"
        )
    return found, logits


def _like(features: Tensor) -> dict[str, Any]:
    """Device and dtype of features that have a width."""
    if features.ndim < 2:
        raise InputError(
            f"a default head needs features (inputs, channels, ...), got {tuple(features.shape)}"
        )
    return {"device": features.device, "dtype": features.dtype}
