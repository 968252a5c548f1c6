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


class Shape(NamedTuple):
    """What of the bank is not a tensor."""

    offsets: tuple[int, ...]  # (E + 1,): expert e owns rows offsets[e]:offsets[e + 1]
    activation: _Activation
    gated: bool

    @property
    def in_place(self) -> bool:
        """Whether rows after the activation tell all that its gradient needs."""
        return self.activation is ACTIVATIONS["relu"] and not self.gated


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
    shape = Shape(tuple(offsets), ACTIVATIONS[activation], gated)
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
        answers, hidden, opened = _forward(rows, up, bias, down, shape, keep=True)
        ctx.shape = shape
        ctx.save_for_backward(rows, up, bias, down, hidden, opened)
        return answers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, up, bias, down, hidden, opened = ctx.saved_tensors
        needed = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            inputs = (rows, up, bias, down)
            return (*_through_reference(grads[0], inputs, ctx.shape, needed), None)
        grad = grads[0].contiguous()
        return (*_backward(grad, rows, up, down, hidden, opened, ctx.shape, needed), None)


def _forward(
    rows: Tensor, up: Tensor, bias: Tensor | None, down: Tensor, shape: Shape, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers (N, D), and if kept hidden rows before the activation and after it.

    After it means, of gated experts, that the activated gate is not multiplied yet.
    """
    groups = _groups(shape.offsets, up.shape[1])
    high = rows.shape[0] if keep else _height(groups)
    hidden = fresh(rows, high, up.shape[1])
    opened = hidden if shape.in_place else fresh(rows, high, down.shape[2])
    product = fresh(rows, _height(groups), down.shape[2]) if keep and shape.gated else opened
    answers = fresh(rows, rows.shape[0], down.shape[1])
    ups, downs = _each(up.transpose(1, 2), groups), _each(down.transpose(1, 2), groups)
    for group in groups:
        low = slice(0, group.height)
        here = group.rows if keep else low
        hidden_nF, active_nF = hidden[here], opened[here]
        for e, x, out in group.pieces(rows[group.rows], hidden_nF):
            _product(x, ups[e], None if bias is None else bias[e], out)
        if shape.gated:
            gate, plain = hidden_nF.chunk(2, dim=1)
            shape.activation.apply(gate, out=active_nF)
            active_nF = torch.mul(active_nF, plain, out=product[low])
        else:
            shape.activation.apply(hidden_nF, out=active_nF)
        for e, x, out in group.pieces(active_nF, answers[group.rows]):
            _product(x, downs[e], None, out)
    return answers, hidden, opened


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Rows times a weight (in, out), into memory that is there."""
    if x.shape[0] == 1:  # a matrix-vector product reads the weight once and as it lies
        x, weight, out = x.squeeze(0), weight.t(), out.squeeze(0)
        if bias is None:
            torch.mv(weight, x, out=out)
        else:
            torch.addmv(bias, weight, x, out=out)
    elif bias is None:
        torch.mm(x, weight, out=out)
    else:
        torch.addmm(bias, x, weight, out=out)


def _backward(
    grad: Tensor,
    rows: Tensor,
    up: Tensor,
    down: Tensor,
    hidden: Tensor,
    opened: Tensor,
    shape: Shape,
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of rows, up, bias and down, those that are needed."""
    groups = _groups(shape.offsets, up.shape[1])
    idle = sum(len(group.experts) for group in groups) < up.shape[0]
    grad_rows = fresh(rows, *rows.shape) if needed[0] else None
    grad_up = fresh(up, *up.shape, zero=idle) if needed[1] else None
    grad_bias = fresh(up, *up.shape[:2], zero=idle) if needed[2] else None
    grad_down = fresh(down, *down.shape, zero=idle) if needed[3] else None
    grad_active = fresh(rows, _height(groups), down.shape[2])
    grad_hidden = fresh(rows, _height(groups), up.shape[1]) if shape.gated else grad_active
    product = torch.empty_like(grad_active) if shape.gated else None
    ups, downs = _each(up, groups), _each(down, groups)
    for group in groups:
        low = slice(0, group.height)
        hidden_nF, active_nF, sent_nF = hidden[group.rows], opened[group.rows], grad_active[low]
        if product is not None and grad_down is not None:
            active_nF = torch.mul(active_nF, hidden_nF.chunk(2, dim=1)[1], out=product[low])
        for e, g, x, out in group.pieces(grad[group.rows], active_nF, sent_nF):
            if grad_down is not None:
                torch.mm(g.t(), x, out=grad_down[e])
            torch.mm(g, downs[e], out=out)
        if not any(needed[:3]):
            continue
        into_nF = grad_hidden[low]
        _activate_backward(sent_nF, hidden_nF, opened[group.rows], into_nF, shape)
        if grad_up is not None:
            for e, g, x in group.pieces(into_nF, rows[group.rows]):
                torch.mm(g.t(), x, out=grad_up[e])
        if grad_bias is not None:
            for e, g in group.pieces(into_nF):
                torch.sum(g, 0, out=grad_bias[e])
        if grad_rows is not None:
            for e, g, out in group.pieces(into_nF, grad_rows[group.rows]):
                torch.mm(g, ups[e], out=out)
    return grad_rows, grad_up, grad_bias, grad_down


def _activate_backward(
    grad: Tensor, hidden: Tensor, opened: Tensor, into: Tensor, shape: Shape
) -> None:
    """The gradient of hidden rows, into memory that may be that of the gradient, which is lost."""
    backward = shape.activation.backward
    if not shape.gated:
        backward(grad, hidden, grad_input=into)
        return
    gate, plain = hidden.chunk(2, dim=1)
    into_gate, into_plain = into.chunk(2, dim=1)
    torch.mul(grad, opened, out=into_plain)
    backward(grad.mul_(plain), gate, grad_input=into_gate)


def _through_reference(
    grad: Tensor, inputs: tuple[Tensor | None, ...], shape: Shape, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that have gradients: those of the loop, run again."""
    rows, up, bias, down = inputs
    assert rows is not None
    assert up is not None
    assert down is not None
    plain = shape.activation.plain
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

    def pieces(self, *stacks: Tensor) -> Iterator[tuple[Any, ...]]:
        """Number and part of each expert, of matrices with the rows of the group."""
        parts = (torch.split(stack, self.sizes) for stack in stacks)
        return zip(self.experts, *parts, strict=True)


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


def _each(stack: Tensor, groups: list[Group]) -> tuple[Tensor, ...] | dict[int, Tensor]:
    """The matrix of each expert that has rows, by its number: all at once if that is quicker."""
    used = [e for group in groups for e in group.experts]
    if 4 * len(used) > stack.shape[0]:
        return stack.unbind(0)
    return {e: stack[e] for e in used}


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
