"""Feed-forward experts on a CPU: one gradient rule for the whole bank, a product for each expert.

Legend: N routed rows sorted by expert, n rows of one group of experts, E experts, D width (of the
answers on the way down), F hidden width of one expert, which counts twice on the way up of gated
experts, gate first.

What costs beside the products is memory that was not touched before, so experts are taken in groups
whose rows fit a processor's cache and share their buffers, the elementwise work is done in place,
and experts without rows are left out in both directions. Works on any device; `reference.by_loop`
is the same to read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pointsman.moe.experts.reference import Activation, by_loop

aten = torch.ops.aten
GROUP = 2**18  # numbers in the hidden rows of one group: 1 MiB of float32


class Shape(NamedTuple):
    """What of the bank is not a tensor."""

    offsets: tuple[int, ...]  # (E + 1,): expert e owns rows offsets[e]:offsets[e + 1]
    activation: str
    gated: bool


class _Activation(NamedTuple):
    plain: Activation  # for the reference
    apply: Callable[..., Any]  # (x, out=)
    backward: Callable[..., Any]  # (grad, x, grad_input=)


def _relu(x: Tensor, out: Tensor) -> None:
    torch.clamp_min(x, 0, out=out)


def _relu_backward(grad: Tensor, x: Tensor, grad_input: Tensor) -> None:
    aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad_input)


ACTIVATIONS = {
    "gelu": _Activation(torch.nn.functional.gelu, aten.gelu.out, aten.gelu_backward.grad_input),
    "relu": _Activation(torch.nn.functional.relu, _relu, _relu_backward),
    "silu": _Activation(torch.nn.functional.silu, aten.silu.out, aten.silu_backward.grad_input),
}


def grouped(
    rows_ND: Tensor,
    offsets: Sequence[int],
    up_EFD: Tensor,
    bias_EF: Tensor | None,
    down_EDF: Tensor,
    activation: str,
    gated: bool,
) -> Tensor:
    """As `by_loop`, for the activations named in `ACTIVATIONS`.

    The gradient of experts without rows is zero memory that is not touched, so that a stack of
    many experts costs what the used ones do. Derivatives of higher order go through `by_loop`.
    """
    shape = Shape(tuple(offsets), activation, gated)
    tensors = (rows_ND.contiguous(), up_EFD, bias_EF, down_EDF)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        answers: Tensor = _Grouped.apply(*tensors, shape)  # type: ignore[no-untyped-call]
        return answers
    return _forward(*tensors, shape, keep=False)[0]


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, up: Tensor, bias: Tensor | None, down: Tensor, shape: Shape
    ) -> Tensor:
        answers, hidden, active = _forward(rows, up, bias, down, shape, keep=True)
        ctx.shape = shape
        ctx.save_for_backward(rows, up, bias, down, hidden, active)
        return answers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, up, bias, down, hidden, active = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (rows, up, bias, down)
            return (*_through_reference(grads[0], inputs, ctx.shape, ctx.needs_input_grad), None)
        grad = grads[0].contiguous()
        return (*_backward(grad, rows, up, down, hidden, active, ctx), None)


def _forward(
    rows: Tensor, up: Tensor, bias: Tensor | None, down: Tensor, shape: Shape, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers (N, D), and if kept hidden rows before and after the activation."""
    groups = _groups(shape.offsets, up.shape[1])
    height = rows.shape[0] if keep else _height(groups)
    hidden = fresh(rows, height, up.shape[1])
    active = fresh(rows, height, down.shape[2]) if keep or shape.gated else hidden
    answers = fresh(rows, rows.shape[0], down.shape[1])
    for group in groups:
        here = group.rows if keep else slice(0, group.height)
        hidden_nF, active_nF = hidden[here], active[here]
        pieces = group.split(rows[group.rows], hidden_nF)
        for e, (x, out) in zip(group.experts, pieces, strict=True):
            _product(x, up[e], None if bias is None else bias[e], out)
        _activate(hidden_nF, active_nF, shape)
        pieces = group.split(active_nF, answers[group.rows])
        for e, (x, out) in zip(group.experts, pieces, strict=True):
            _product(x, down[e], None, out)
    return answers, hidden, active


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Rows times a weight (out, in), into memory that is there."""
    if x.shape[0] == 1:  # a matrix-vector product reads the weight once and as it lies
        x, out = x.squeeze(0), out.squeeze(0)
        if bias is None:
            torch.mv(weight, x, out=out)
        else:
            torch.addmv(bias, weight, x, out=out)
    elif bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def _activate(hidden: Tensor, active: Tensor, shape: Shape) -> None:
    apply = ACTIVATIONS[shape.activation].apply
    if shape.gated:
        gate, plain = hidden.chunk(2, dim=1)
        apply(gate, out=active)
        active.mul_(plain)
    else:
        apply(hidden, out=active)


def _backward(
    grad: Tensor, rows: Tensor, up: Tensor, down: Tensor, hidden: Tensor, active: Tensor, ctx: Any
) -> tuple[Tensor | None, ...]:
    shape: Shape = ctx.shape
    need_rows, need_up, need_bias, need_down = ctx.needs_input_grad[:4]
    groups = _groups(shape.offsets, up.shape[1])
    idle = sum(len(group.experts) for group in groups) < up.shape[0]
    grad_rows = fresh(rows, *rows.shape) if need_rows else None
    grad_up = fresh(up, *up.shape, zero=idle) if need_up else None
    grad_bias = fresh(up, *up.shape[:2], zero=idle) if need_bias else None
    grad_down = fresh(down, *down.shape, zero=idle) if need_down else None
    grad_active = fresh(rows, _height(groups), down.shape[2])
    grad_hidden = fresh(rows, _height(groups), up.shape[1]) if shape.gated else grad_active
    for group in groups:
        here, low = group.rows, slice(0, group.height)
        pieces = group.split(grad[here], active[here], grad_active[low])
        for e, (sent, kept, out) in zip(group.experts, pieces, strict=True):
            if grad_down is not None:
                torch.mm(sent.t(), kept, out=grad_down[e])
            torch.mm(sent, down[e], out=out)
        if not (need_rows or need_up or need_bias):
            continue
        _activate_backward(grad_active[low], hidden[here], grad_hidden[low], shape)
        pieces = group.split(grad_hidden[low], rows[here])
        for e, (sent, kept) in zip(group.experts, pieces, strict=True):
            if grad_up is not None:
                torch.mm(sent.t(), kept, out=grad_up[e])
            if grad_bias is not None:
                torch.sum(sent, 0, out=grad_bias[e])
        if grad_rows is not None:
            pieces = group.split(grad_hidden[low], grad_rows[here])
            for e, (sent, out) in zip(group.experts, pieces, strict=True):
                torch.mm(sent, up[e], out=out)
    return grad_rows, grad_up, grad_bias, grad_down


def _activate_backward(grad: Tensor, hidden: Tensor, into: Tensor, shape: Shape) -> None:
    activation = ACTIVATIONS[shape.activation]
    if not shape.gated:
        activation.backward(grad, hidden, grad_input=into)
        return
    gate, plain = hidden.chunk(2, dim=1)
    into_gate, into_plain = into.chunk(2, dim=1)
    activation.apply(gate, out=into_plain)
    into_plain.mul_(grad)
    grad.mul_(plain)
    activation.backward(grad, gate, grad_input=into_gate)


def _through_reference(
    grad: Tensor, inputs: tuple[Tensor | None, ...], shape: Shape, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that have gradients: those of the loop, run again."""
    rows, up, bias, down = inputs
    assert rows is not None
    assert up is not None
    assert down is not None
    plain = ACTIVATIONS[shape.activation].plain
    sizes = [b - a for a, b in pairwise(shape.offsets)]
    answers = by_loop(rows, sizes, up, bias, down, plain, shape.gated)
    wanted = [t for t, need in zip(inputs, needed, strict=False) if need and t is not None]
    found = iter(torch.autograd.grad(answers, wanted, grad, create_graph=True))
    return [next(found) if need else None for _, need in zip(inputs, needed, strict=False)]


class Group(NamedTuple):
    """Neighbouring experts, of those that have rows, that are worked on together."""

    rows: slice
    experts: list[int]
    sizes: list[int]  # rows of each

    @property
    def height(self) -> int:
        """How many rows they have together."""
        rows: int = self.rows.stop - self.rows.start
        return rows

    def split(self, *stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """What belongs to each of the experts, of matrices with the rows of the group."""
        return zip(*(torch.split(stack, self.sizes) for stack in stacks), strict=True)


def _groups(offsets: Sequence[int], width: int) -> list[Group]:
    """Experts that have rows, in groups of about `GROUP` numbers in hidden rows of this width."""
    groups: list[Group] = []
    start = 0
    experts: list[int] = []
    sizes: list[int] = []
    for e, (low, high) in enumerate(pairwise(offsets)):
        if low == high:
            continue
        if experts and (high - start) * width > GROUP:
            groups.append(Group(slice(start, low), experts, sizes))
            start, experts, sizes = low, [], []
        experts.append(e)
        sizes.append(high - low)
    if experts:
        groups.append(Group(slice(start, offsets[-1]), experts, sizes))
    return groups


def _height(groups: list[Group]) -> int:
    return max((group.height for group in groups), default=0)


def fresh(like: Tensor, *shape: int, zero: bool = False) -> Tensor:
    """A tensor of this shape, of the type and on the device of another, with any values or zeros.

    On a CPU, large ones are taken through NumPy: it asks for large pages, which take several times
    less time to be touched first, and its zeros are the system's own, which cost nothing until
    they are touched.
    """
    if like.device.type != "cpu" or math.prod(shape) < 2**20:
        return like.new_zeros(shape) if zero else like.new_empty(shape)
    count = math.prod(shape) * like.element_size()
    make = np.zeros if zero else np.empty
    raw = torch.from_numpy(make(count + 64, dtype=np.uint8))
    skipped = -raw.data_ptr() % 64  # products are fastest on whole cache lines
    return raw[skipped : skipped + count].view(like.dtype).view(shape)
