"""Layers whose weight is a product of thin factors, W = U S V^T.

Linear layers and convolutions, whose filters are read as a matrix (outputs, inputs x height x
width). Written so, and used without being multiplied out, a layer of rank R costs R (O + I)
products for O I.

Legend: O outputs, I inputs of the matrix (channels times filter positions), R rank.
"""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

Layer = nn.Linear | nn.Conv2d


class LowRank(nn.Module):
    """A linear layer or convolution with the weight U S V^T, U and V with orthonormal columns.

    Args:
        layer: whose weight is brought to the rank, nearest in the Frobenius norm. Stays as it is.
        rank: R; at most that of the matrix is kept. None: all of it.

    Raises:
        InputError: a rank below 1, or a layer that is neither linear nor an ungrouped convolution
            that pads with zeros.

    Attributes:
        u_OR, s_RR, v_IR: the factors.
        bias: of the layer, or None.
    """

    def __init__(self, layer: Layer, rank: int | None = None) -> None:
        super().__init__()
        _check(layer, rank)
        weight_OI = layer.weight.detach().flatten(1)
        u, s, vt = torch.linalg.svd(weight_OI, full_matrices=False)
        self.u_OR = nn.Parameter(u[:, :rank].clone())
        self.s_RR = nn.Parameter(torch.diag(s[:rank]))
        self.v_IR = nn.Parameter(vt[:rank].T.clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self._like = _Shape(layer)
        # Zeros with a gradient while an integrator asks for the gradients of K = U S and L = V S^T.
        self.probes: tuple[Tensor, Tensor] | None = None

    @property
    def rank(self) -> int:
        """R."""
        return self.s_RR.shape[0]

    @property
    def matrix(self) -> Tensor:
        """W (O, I), multiplied out."""
        return self.u_OR @ self.s_RR @ self.v_IR.T

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, of the same shape."""
        outward_OR = self.u_OR @ self.s_RR
        if self.probes is None:
            return self._like.outward(self._like.inward(x, self.v_IR), outward_OR, self.bias)
        k_OR, l_IR = self.probes
        first = self._like.outward(self._like.inward(x, self.v_IR), outward_OR + k_OR, self.bias)
        return first + self._like.outward(self._like.inward(x, l_IR), self.u_OR, None)

    @torch.no_grad()
    def set_factors(self, u_OR: Tensor, s_RR: Tensor, v_IR: Tensor) -> None:
        """Other factors, of any rank; the parameters are new ones where the rank changes."""
        for name, value in (("u_OR", u_OR), ("s_RR", s_RR), ("v_IR", v_IR)):
            held = getattr(self, name)
            if held.shape == value.shape:
                held.copy_(value)
            else:
                setattr(self, name, nn.Parameter(value.clone()))

    @torch.no_grad()
    def truncate(self, threshold: float, least: int = 1) -> None:
        """Drop singular values, as many as `rank_within` allows; S is diagonal afterwards."""
        p, d, qt = torch.linalg.svd(self.s_RR)
        rank = rank_within(d, threshold, least)
        self.set_factors(self.u_OR @ p[:, :rank], torch.diag(d[:rank]), self.v_IR @ qt[:rank].T)

    @torch.no_grad()
    def plain(self) -> nn.Sequential:
        """Two ordinary layers, one after another, with copies of V^T and of U S."""
        return self._like.layers(self.v_IR, self.u_OR @ self.s_RR, self.bias)


class _Shape:
    """How a matrix is used: as a linear map, or as a convolution of a stride and a padding."""

    def __init__(self, layer: Layer) -> None:
        self.filters: tuple[int, ...] = tuple(layer.weight.shape[1:])  # (I,) or (channels, H, W)
        self.options = (
            {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
            if isinstance(layer, nn.Conv2d)
            else {}
        )

    def inward(self, x: Tensor, factor_IR: Tensor) -> Tensor:
        if not self.options:
            return x @ factor_IR
        return functional.conv2d(x, factor_IR.T.reshape(-1, *self.filters), **self.options)

    def outward(self, x: Tensor, factor_OR: Tensor, bias: Tensor | None) -> Tensor:
        if not self.options:
            return functional.linear(x, factor_OR, bias)
        return functional.conv2d(x, factor_OR[:, :, None, None], bias)

    def layers(self, v_IR: Tensor, outward_OR: Tensor, bias: Tensor | None) -> nn.Sequential:
        outputs, rank = outward_OR.shape
        inner: nn.Linear | nn.Conv2d
        outer: nn.Linear | nn.Conv2d
        if self.options:
            channels, high, wide = self.filters
            inner = nn.Conv2d(channels, rank, (high, wide), bias=False, **self.options)
            outer = nn.Conv2d(rank, outputs, 1, bias=bias is not None)
        else:
            inner = nn.Linear(self.filters[0], rank, bias=False)
            outer = nn.Linear(rank, outputs, bias=bias is not None)
        inner.weight.data = v_IR.T.reshape(inner.weight.shape).clone()
        outer.weight.data = outward_OR.reshape(outer.weight.shape).clone()
        if bias is not None and outer.bias is not None:
            outer.bias.data = bias.detach().clone()
        return nn.Sequential(inner, outer).to(v_IR.device, v_IR.dtype)


def _check(layer: nn.Module, rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise InputError(f"a rank is at least 1, got {rank}")
    plain = isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    )
    if not plain:
        raise InputError(
            "low rank is for nn.Linear and for nn.Conv2d without groups that pads with zeros, got "
            f"{layer}: leave it as it is"
        )


def rank_within(values_R: Tensor, threshold: float, least: int = 1) -> int:
    """How many singular values must stay so that the rest is small.

    Args:
        values_R: falling.
        threshold: share of the norm of all values that the norm of the dropped ones may be.
        least: how many stay in any case.

    Raises:
        InputError: a threshold outside [0, 1), or fewer than one value to stay.
    """
    if not 0 <= threshold < 1 or least < 1:
        raise InputError(
            "a threshold lies in [0, 1) and at least one singular value stays, got "
            f"threshold={threshold}, least={least}"
        )
    # tails[r]: the norm of what is dropped if r values stay.
    tails = values_R.double().square().flip(0).cumsum(0).flip(0).sqrt()
    kept = int((tails > threshold * tails[0]).sum())
    return min(max(kept, least), len(values_R))


def make_low_rank(
    net: nn.Module, rank: int | None = None, *, keep: Collection[str] = ()
) -> nn.Module:
    """A copy of a network whose linear layers and convolutions are `LowRank`.

    Args:
        net: any module; layers that cannot be brought to low rank stay as they are.
        rank: of each layer, at most; None: the whole rank, which gives the same outputs.
        keep: names of layers that stay as they are, such as the last one.

    Raises:
        InputError: a name that is no layer of it, or nothing left to change.
    """
    changed = copy.deepcopy(net)
    layers = dict(changed.named_modules())
    unknown = sorted(set(keep) - set(layers))
    if unknown:
        raise InputError(f"keep names layers of the network, got {unknown[0]!r}, which is none")
    found = [
        name
        for name, layer in layers.items()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros")
    ]
    found = [name for name in found if name not in keep]
    if not found:
        raise InputError(
            "low rank needs a linear layer or a convolution that is not kept, got none"
        )
    for name in found:
        whole = layers[name]
        assert isinstance(whole, nn.Linear | nn.Conv2d)
        low = LowRank(whole, rank).train(net.training)
        if not name:  # the network is one layer
            return low
        changed.set_submodule(name, low)
    return changed
