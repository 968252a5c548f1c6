"""Widths and depths searched by mixing aligned outputs: transformable architecture search.

Dong and Yang 2019, "Network pruning via transformable architecture search" (TAS, arXiv 1905.09717).
A layer runs once at the larger of two sampled widths; each candidate takes the first channels, has
a norm of its own and is brought to the larger width by interpolation along the channels; their
weighted sum goes on. The outputs after each candidate depth are mixed likewise. With `Relaxation`,
`alternate`, `thresholds.expected_cost` and `budget_loss` this is the search; the sizes that it
derives are trained anew, with distillation from the whole network.

Where we depart: a depth is also drawn as a pair (`PairGate` is the gate of every choice), where the
authors mix all depths. A layer that meets fewer channels than it has inputs uses the first columns
of its weights, which equals filling up with zeros, as the authors do.

Legend: N inputs, C channels, E options; channels are the second dimension, others may follow.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool1d

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.relax.gates import Annealed, Draw, softmax_gate
from pointsman.supernet.space import Choice, Option
from pointsman.supernet.supernet import plain_module

When = tuple[str, tuple[Option, ...]]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Sized(Protocol):
    """A module that says how many channels it gives."""

    def channels(self) -> int:
        """With what is in force."""
        ...


def interpolate_channels(x_NC: Tensor, channels: int) -> Tensor:
    """Another number of channels by adaptive average pooling along them: (N, C, ...) → as many.

    The identity for the same number; constants stay constants.
    """
    if x_NC.shape[1] == channels:
        return x_NC
    along = x_NC.flatten(2) if x_NC.ndim > 2 else x_NC.unsqueeze(2)
    moved = adaptive_avg_pool1d(along.transpose(1, 2), channels).transpose(1, 2)
    return moved.reshape(len(x_NC), channels, *x_NC.shape[2:])


class InterpolatedWidth(nn.Module):
    """A layer and its norm with several widths, which can be mixed.

    Args:
        name: of the choice.
        layer: linear or an ungrouped convolution, at its largest.
        counts: options: numbers of outputs, rising.
        norm: makes the norm of an option from its count; each has its own, as each sees other
            statistics. `nn.Identity` for none.
        before: the module whose outputs are the layer's inputs, if it is elastic.
        when: under which option of an earlier choice the width matters, as in `Choice`.

    Raises:
        InputError: another layer, or counts that do not rise within its outputs.
    """

    mixes = True

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        counts: Sequence[int],
        *,
        norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
        before: Sized | None = None,
        when: When | None = None,
    ) -> None:
        super().__init__()
        outputs = len(_weight(layer))
        if list(counts) != sorted(set(counts)) or not 1 <= counts[0] <= counts[-1] <= outputs:
            raise InputError(
                f"the widths of {name!r} rise within 1 to {outputs}, got {list(counts)}"
            )
        self.dial = Dial(Choice(name, tuple(counts), when))
        self.counts = tuple(counts)
        self.layer = layer
        self.norms = nn.ModuleList(norm(count) for count in counts)
        self._before = (before,)  # in a tuple it is no part of this module

    def forward(self, x_NC: Tensor) -> Tensor:
        """(N, C, ...) with any C up to the layer's inputs → of the width in force.

        With a mixture: of the largest width whose weight is not 0.
        """
        mixture = self.dial.mixture
        if mixture is None:
            at = self.dial.index
            out: Tensor = self.norms[at](_run(self.layer, x_NC, self.counts[at]))
            return out
        taken = mixture.detach().nonzero().flatten().tolist()
        largest = self.counts[taken[-1]]
        whole = _run(self.layer, x_NC, largest)
        parts = [self.norms[at](whole[:, : self.counts[at]]) for at in taken]
        return _aligned(parts, mixture[taken], largest)

    def channels(self) -> int:
        """The width in force."""
        return self.counts[self.dial.index]

    def dials(self) -> tuple[Dial, ...]:
        """The one decision."""
        return (self.dial,)

    def plain(self) -> nn.Module:
        """A smaller layer, then the norm of its width."""
        layer = _narrowed(self.layer, self.channels(), self._before[0])
        return nn.Sequential(layer, copy.deepcopy(self.norms[self.dial.index]))


class InterpolatedDepth(nn.Module):
    """A stage of blocks of which the first few run, whose outputs can be mixed.

    Args:
        name: of the choice.
        blocks: one after another, such as `InterpolatedWidth`s in a `Chain`.
        counts: options: numbers of blocks that run, rising.

    Raises:
        InputError: counts that do not rise from 1 to the number of blocks.
    """

    mixes = True

    def __init__(self, name: str, blocks: Sequence[nn.Module], counts: Sequence[int]) -> None:
        super().__init__()
        if list(counts) != sorted(set(counts)) or counts[0] < 1 or counts[-1] != len(blocks):
            raise InputError(
                f"the depths of {name!r} rise from 1 or more to all {len(blocks)} blocks, got "
                f"{list(counts)}"
            )
        self.dial = Dial(Choice(name, tuple(counts)))
        self.counts = tuple(counts)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_NC: Tensor) -> Tensor:
        """(N, C, ...) → of the last block in force; with a mixture, of the widest that is mixed."""
        mixture = self.dial.mixture
        if mixture is None:
            taken = [self.dial.index]
        else:
            taken = mixture.detach().nonzero().flatten().tolist()
        ends = [self.counts[at] for at in taken]
        found = []
        for number, block in enumerate(list(self.blocks)[: ends[-1]], start=1):
            x_NC = block(x_NC)
            if number in ends:
                found.append(x_NC)
        if mixture is None:
            return x_NC
        return _aligned(found, mixture[taken], max(out.shape[1] for out in found))

    def channels(self) -> int:
        """Of the last block in force."""
        last = self.blocks[self.counts[self.dial.index] - 1]
        return cast("Sized", last).channels()

    def dials(self) -> tuple[Dial, ...]:
        """The one decision."""
        return (self.dial,)

    def plain(self) -> nn.Module:
        """The blocks in force, as they are."""
        count = self.counts[self.dial.index]
        return nn.Sequential(*(plain_module(copy.deepcopy(b)) for b in self.blocks[:count]))


class Chain(nn.Sequential):
    """A block of an `InterpolatedWidth` and modules after it that keep the channels.

    Args:
        width: runs first.
        *after: such as an activation.
    """

    def __init__(self, width: InterpolatedWidth, *after: nn.Module) -> None:
        super().__init__(width, *after)
        self._width = (width,)  # is asked for its channels even when a plain layer took its place

    def channels(self) -> int:
        """Of the first module."""
        return self._width[0].channels()


class AnyInput(nn.Module):
    """A layer after elastic ones, whose outputs are all kept.

    Args:
        layer: linear or an ungrouped convolution, for the largest number of inputs.
        before: whose outputs are its inputs.
    """

    def __init__(self, layer: nn.Module, before: Sized) -> None:
        super().__init__()
        _weight(layer)
        self.layer = layer
        self._before = (before,)

    def forward(self, x_NC: Tensor) -> Tensor:
        """(N, C, ...) with any C up to the layer's inputs → all outputs."""
        return _run(self.layer, x_NC, len(_weight(self.layer)))

    def dials(self) -> tuple[Dial, ...]:
        """None of its own."""
        return ()

    def plain(self) -> nn.Module:
        """The layer with the inputs that are in force."""
        return _narrowed(self.layer, len(_weight(self.layer)), self._before[0])


@dataclass(frozen=True)
class PairGate(Annealed):
    """Two options, drawn without putting back, weighed by a softmax between them.

    Gumbel noise is added to the log probabilities and the temperature divides; the two are drawn by
    the softmax of that. Options not drawn have weight 0 and no gradient.

    Args:
        start: temperature at the beginning.
        end: at the end; it falls along a cosine.

    Raises:
        InputError: a temperature that is not above 0.
    """

    start: float = 5.0
    end: float = 0.1

    def __call__(self, logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
        """Weights (E,) of which at most two are not 0."""
        draw = draw or Draw()
        if len(logits) <= 2:  # both, or the one there is
            pair = torch.arange(len(logits), device=logits.device)
        fall = (1 + math.cos(math.pi * draw.progress)) / 2
        temperature = self.end + (self.start - self.end) * fall
        uniform = torch.rand(len(logits), generator=draw.generator).to(logits)
        tiny = torch.finfo(logits.dtype).tiny
        noise = -(-uniform.clamp(min=tiny, max=1 - 1e-7).log()).log()
        noisy = (logits.log_softmax(dim=0) + noise) / temperature
        if len(logits) > 2:
            chances = noisy.detach().softmax(dim=0).cpu() + 1e-7
            pair = torch.multinomial(chances, 2, generator=draw.generator).to(logits.device)
        return torch.zeros_like(logits).index_put((pair,), softmax_gate(noisy[pair]))


def budget_loss(
    expected: Tensor, derived: float, target: float, *, tolerance: float = 0.05
) -> Tensor:
    """log of the expected cost, with a sign that leads what is derived into a band, or 0 in it.

    Args:
        expected: cost of the mixture, above 0, with a gradient.
        derived: cost of what would be derived now, in the same unit.
        target: the most it may be.
        tolerance: it may be this share below, too.

    Raises:
        InputError: a target that is not above 0, or a tolerance outside [0, 1).
    """
    if target <= 0 or not 0 <= tolerance < 1:
        raise InputError(
            f"a target is above 0 and a tolerance in [0, 1), got {target} and {tolerance}"
        )
    if derived > target:
        return expected.log()
    return -expected.log() if derived < (1 - tolerance) * target else 0 * expected


def _aligned(parts: Sequence[Tensor], weights: Tensor, channels: int) -> Tensor:
    pairs = zip(parts, weights, strict=True)
    mixed: Tensor = sum(w * interpolate_channels(x, channels) for x, w in pairs)
    return mixed


def _weight(layer: Any) -> Tensor:
    if not isinstance(layer, LAYERS) or getattr(layer, "groups", 1) > 1:
        raise InputError(
            f"a linear layer or an ungrouped convolution has several widths, got {layer}"
        )
    return layer.weight


def _run(layer: nn.Module, x_NC: Tensor, outputs: int) -> Tensor:
    """The layer with its first outputs, on as many inputs as there are."""
    inputs = x_NC.shape[1]
    kept = {
        name: tensor[:outputs, :inputs] if name == "weight" else tensor[:outputs]
        for name, tensor in layer.named_parameters()
    }
    out: Tensor = functional_call(layer, kept, (x_NC,))
    return out


def _narrowed(layer: Any, outputs: int, before: Sized | None) -> nn.Module:
    """A copy with its first outputs, and the inputs that the module before it gives."""
    inputs = layer.weight.shape[1] if before is None else before.channels()
    small: Any = copy.deepcopy(layer)
    small.weight = nn.Parameter(layer.weight.detach()[:outputs, :inputs].clone())
    if layer.bias is not None:
        small.bias = nn.Parameter(layer.bias.detach()[:outputs].clone())
    linear = isinstance(layer, nn.Linear)
    names = ("in_features", "out_features") if linear else ("in_channels", "out_channels")
    for name, value in zip(names, (inputs, outputs), strict=True):
        setattr(small, name, value)
    return cast("nn.Module", small)
