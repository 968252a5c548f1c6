"""Moving rows between the order of the inputs and the order of the branches.

Legend: T inputs, E branches, N routed pairs, D width. Private to `pointsman.route`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Plan(NamedTuple):
    """Index work of one route, done once: both orders of the pairs and where each group begins."""

    order: Tensor  # (N,) branch order -> route order
    inverse: Tensor  # (N,) route order -> branch order
    inputs: Tensor  # (N,) input of each pair, in branch order
    branch_offsets: Tensor  # (E + 1,)
    input_offsets: Tensor  # (T + 1,)


class _Move(torch.autograd.Function):
    """Rows of inputs (T, D) `out` to pairs (N, D) in branch order, or back, summed by input.

    Each row is multiplied by its pair's weight, if there are weights. The two directions are each
    other's transpose, so the gradient of one is the other.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor | None, plan: Plan, out: bool) -> Tensor:
        ctx.plan, ctx.out = plan, out
        ctx.save_for_backward(x if weights is not None else None, weights)
        return _moved(x, weights, plan, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,), (x, weights), plan = grads, ctx.saved_tensors, ctx.plan
        grad_x = grad_weights = None
        if ctx.needs_input_grad[0]:
            grad_x = move(grad, weights, plan, out=not ctx.out)
        if ctx.needs_input_grad[1]:
            at_inputs, at_pairs = (x, grad) if ctx.out else (grad, x)
            sent = move(at_inputs, None, plan, out=True)
            # In place, because fresh memory is what takes the time here.
            grad_weights = sent.mul_(at_pairs).sum(-1).index_select(0, plan.inverse)
        return grad_x, grad_weights, None, None


def move(x: Tensor, weights: Tensor | None, plan: Plan, *, out: bool) -> Tensor:
    """Rows of inputs `out` to rows of pairs in branch order, or those back, summed by input."""
    learns = x.requires_grad or (weights is not None and weights.requires_grad)
    if not (learns and torch.is_grad_enabled()):  # a rule for gradients costs more than few rows
        return _moved(x, weights, plan, out)
    moved: Tensor = _Move.apply(x, weights, plan, out)  # type: ignore[no-untyped-call]
    return moved


def _moved(x: Tensor, weights: Tensor | None, plan: Plan, out: bool) -> Tensor:
    if not out:
        return _bags(x, plan.inverse, plan.input_offsets, weights)
    if weights is None:
        return x.index_select(0, plan.inputs)
    one_each = torch.arange(weights.shape[0] + 1, device=x.device)
    return _bags(x, plan.inputs, one_each, weights.index_select(0, plan.order))


def _bags(rows: Tensor, index: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
    """Sums of rows[index] between offsets: one pass, many times faster on a CPU than a scatter."""
    if 0 in rows.shape or index.shape[0] == 0:  # the kernel does not take empty tables
        return rows.new_zeros(offsets.shape[0] - 1, rows.shape[1])
    return embedding_bag(
        index,
        rows.contiguous(),
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def tally(ids: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs; bincount would make the host wait for a GPU."""
    return ids.new_zeros(size).scatter_add_(0, ids, torch.ones_like(ids))


def offsets(ids: Tensor, size: int) -> Tensor:
    """(size + 1,): where the ids of each of 0..size-1 would begin and end if they were sorted."""
    counts = ids.new_zeros(size + 1)
    counts[1:].scatter_add_(0, ids, torch.ones_like(ids))
    return counts.cumsum(0)


def narrow(size: int) -> torch.dtype:
    """The narrowest integer type that holds 0..size-1."""
    if size <= 2**8:
        return torch.uint8
    return torch.int16 if size <= 2**15 else torch.int64
