"""How each operation ties the labels of what goes in to the labels of what comes out.

The operations are torch's own basic ones (ATen), into which every module and function breaks down,
so a rule says nothing of modules. One without a rule fixes what it touches: it is never wrong,
and nothing is removed there.

Legend: P positions of a dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pointsman.supernet.channels.ledger import Call, Ledger, tensors_in

Rule = Callable[[Ledger, Call], None]
aten = torch.ops.aten


def unknown(ledger: Ledger, call: Call) -> None:
    """Nothing that goes in or comes out can be removed."""
    for x in tensors_in((call.args, call.kwargs)):
        ledger.fix(x)
    for out in tensors_in(call.out):
        ledger.give(out, [])


def pointwise(ledger: Ledger, call: Call) -> None:
    """Every position meets its like; dimensions of size 1 are repeated."""
    taken = list(tensors_in((call.args, call.kwargs)))
    for out in tensors_in(call.out):
        meet_pointwise(ledger, taken, out)


def meet_pointwise(ledger: Ledger, taken: list[Tensor], out: Tensor) -> None:
    """Tie broadcast dimensions and write the result down."""
    free = all(ledger.is_free(x) for x in taken)
    vectors = [(x, ledger.vectors(x)) for x in taken]
    merged = [
        ledger.meet(
            *(
                (of_x[-back], ledger.is_free(x))
                for x, of_x in vectors
                if x.dim() >= back and x.shape[-back] == out.shape[-back] > 1
            )
        )
        for back in range(out.dim(), 0, -1)
    ]
    if ledger.is_free(out) and out._is_view() and not free:
        for vector in merged:  # written through a view: what lies under it stays as it is
            ledger.labels.fix(vector)
        ledger.give(out, [])
        if out._base is not None:
            ledger.give(out._base, [])
        return
    ledger.set(out, merged)
    if free:
        ledger.give(out, [], free=True)


def identity(ledger: Ledger, call: Call) -> None:
    """The same numbers: in another type, in another place, or without what is not in a triangle."""
    x = call.args[0]
    ledger.give(call.out, ledger.factors(x), free=ledger.is_free(x))


def like(ledger: Ledger, call: Call) -> None:
    """A new tensor in the shape of another."""
    ledger.give(call.out, ledger.factors(call.args[0]))


def made(ledger: Ledger, call: Call) -> None:
    """Made of sizes alone."""
    for out in tensors_in(call.out):
        ledger.give(out, [], free=True)


def _set_keeping(ledger: Ledger, call: Call, vectors: list[Tensor | None]) -> None:
    outs = list(tensors_in(call.out))
    ledger.set(outs[0], vectors)
    for other in outs[1:]:
        ledger.give(other, [])


# Products.


def _contract(ledger: Ledger, a: Tensor, dim_a: int, b: Tensor, dim_b: int) -> None:
    """Summed over: what one lacks the other cannot use."""
    ledger.meet(
        (ledger.vectors(a)[dim_a], ledger.is_free(a)), (ledger.vectors(b)[dim_b], ledger.is_free(b))
    )


def _product(ledger: Ledger, a: Tensor, b: Tensor, out: Tensor) -> None:
    """mm and bmm: (..., M, K) by (..., K, N)."""
    _contract(ledger, a, -1, b, -2)
    rows, columns = ledger.vectors(a), ledger.vectors(b)
    batch = [
        ledger.meet((x, ledger.is_free(a)), (y, ledger.is_free(b)))
        for x, y in zip(rows[:-2], columns[:-2], strict=True)
    ]
    ledger.set(out, [*batch, rows[-2], columns[-1]])


def product(ledger: Ledger, call: Call) -> None:
    """Matrix product, alone or in batches."""
    _product(ledger, call.args[0], call.args[1], call.out)


def added_product(ledger: Ledger, call: Call) -> None:
    """A matrix product and something added to it."""
    start, a, b = call.args[:3]
    _product(ledger, a, b, call.out)
    meet_pointwise(ledger, [start, call.out], call.out)


def linear(ledger: Ledger, call: Call) -> None:
    """(..., K) by weights (N, K)."""
    x, weight = call.args[:2]
    bias = call.option(2, "bias")
    _contract(ledger, x, -1, weight, 1)
    ledger.set(call.out, [*ledger.vectors(x)[:-1], ledger.vectors(weight)[0]])
    if bias is not None:
        meet_pointwise(ledger, [bias, call.out], call.out)


def vector_product(ledger: Ledger, call: Call) -> None:
    """(M, K) by (K,), or (K,) by (K,)."""
    a, b = call.args[:2]
    _contract(ledger, a, -1, b, 0)
    ledger.set(call.out, ledger.vectors(a)[:-1])


def convolution(ledger: Ledger, call: Call) -> None:
    """(batch, channels, ...) by a kernel; in groups, whole groups live and die."""
    x, kernel, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    for tensor in (x, kernel):
        for dim in range(2, tensor.dim()):
            ledger.fix_dim(tensor, dim)
    if groups == 1:
        _contract(ledger, x, 1, kernel, 0 if transposed else 1)
        channels = ledger.vectors(kernel)[1 if transposed else 0]
    else:
        channels = _grouped(ledger, x, kernel, groups, transposed)
    ledger.set(call.out, [ledger.vectors(x)[0], channels, *[None] * (x.dim() - 2)])
    if bias is not None:
        of_bias = ledger.vectors(bias)[0]
        merged = ledger.meet((channels, False), (of_bias, False))
        ledger.set(call.out, [ledger.vectors(x)[0], merged, *[None] * (x.dim() - 2)])


def _grouped(
    ledger: Ledger, x: Tensor, kernel: Tensor, groups: int, transposed: bool
) -> Tensor | None:
    """(P,) labels of the outputs: one for each group of channels."""
    ledger.fix_dim(kernel, 1)
    into, rows = ledger.vectors(x)[1], ledger.vectors(kernel)[0]
    if into is None or rows is None:
        ledger.labels.fix(into)
        ledger.labels.fix(rows)
        return None
    blocks_in, blocks_rows = into.reshape(groups, -1), rows.reshape(groups, -1)
    ledger.labels.tie(blocks_in, blocks_in[:, :1])
    ledger.labels.tie(blocks_rows, blocks_in[:, :1])
    return blocks_rows[:, :1].expand(-1, kernel.shape[1]).reshape(-1) if transposed else rows


def embedding(ledger: Ledger, call: Call) -> None:
    """Rows looked up: the table's rows stay, its columns are what comes out."""
    weight, index = call.args[:2]
    ledger.fix_dim(weight, 0)
    ledger.set(call.out, [*[None] * index.dim(), ledger.vectors(weight)[1]])


# Normalisation and reduction.


def _note_inexact(ledger: Ledger, vector: Tensor | None) -> None:
    if vector is not None:
        ledger.inexact.append(vector)


def batch_norm(ledger: Ledger, call: Call) -> None:
    """Weights, biases and statistics go with their channel."""
    x = call.args[0]
    vectors = ledger.vectors(x)
    others = [other for other in call.args[1:5] if other is not None]
    vectors[1] = ledger.meet(
        (vectors[1], ledger.is_free(x)),
        *((ledger.vectors(o)[0], ledger.is_free(o)) for o in others),
    )
    _set_keeping(ledger, call, vectors)


def layer_norm(ledger: Ledger, call: Call) -> None:
    """Statistics over the last dimensions change with what is removed from them."""
    x, shape = call.args[:2]
    vectors = ledger.vectors(x)
    for other in call.args[2:4]:
        if isinstance(other, Tensor):
            for dim in range(-len(shape), 0):
                vectors[dim] = ledger.meet(
                    (vectors[dim], ledger.is_free(x)), (ledger.vectors(other)[dim], False)
                )
    for dim in range(-len(shape), 0):
        _note_inexact(ledger, vectors[dim])
        ledger.note_length(vectors[dim])
    _set_keeping(ledger, call, vectors)


def group_norm(ledger: Ledger, call: Call) -> None:
    """Whole groups live and die; one group over all channels is as layer normalisation."""
    x, weight, bias = call.args[:3]
    groups = call.args[6]
    vectors = ledger.vectors(x)
    for other in (weight, bias):
        if other is not None:
            vectors[1] = ledger.meet((vectors[1], False), (ledger.vectors(other)[0], False))
    if groups == 1:
        _note_inexact(ledger, vectors[1])
    elif weight is None:  # then nothing of the module says how many groups are left
        ledger.labels.fix(vectors[1])
    elif vectors[1] is not None:
        blocks = vectors[1].reshape(groups, -1)
        ledger.labels.tie(blocks, blocks[:, :1])
    _set_keeping(ledger, call, vectors)


def _dims(value: Any, rank: int) -> list[int]:
    given = list(range(rank)) if value is None or value == [] else value
    return [dim % rank for dim in ([given] if isinstance(given, int) else given)]


def reduction(ledger: Ledger, call: Call) -> None:
    """A mean, a sum or the like over dimensions, which may stay with size 1."""
    x = call.args[0]
    given = call.option(1, "dim")
    gone = _dims(given if isinstance(given, int | list | tuple) else None, x.dim())
    vectors = ledger.vectors(x)
    for dim in gone:
        _note_inexact(ledger, vectors[dim])
    outs = list(tensors_in(call.out))
    if outs[0].dim() == x.dim():
        kept = [None if dim in gone else vector for dim, vector in enumerate(vectors)]
    else:
        kept = [vector for dim, vector in enumerate(vectors) if dim not in gone]
    for out in outs:
        ledger.set(out, kept)


def softmax(ledger: Ledger, call: Call) -> None:
    """Shares along a dimension change with what is removed from it."""
    x = call.args[0]
    vectors = ledger.vectors(x)
    _note_inexact(ledger, vectors[call.args[1]])
    ledger.set(call.out, vectors)


def spatial(ledger: Ledger, call: Call) -> None:
    """Pooling and resizing of (batch, channels, ...): channels stay what they are."""
    x = call.args[0]
    for dim in range(2, x.dim()):
        ledger.fix_dim(x, dim)
    for out in tensors_in(call.out):
        ledger.set(out, [*ledger.vectors(x)[:2], *[None] * (out.dim() - 2)])


def gated(ledger: Ledger, call: Call) -> None:
    """glu: the halves of a dimension meet."""
    x = call.args[0]
    dim = call.option(1, "dim", -1) % x.dim()
    vectors = ledger.vectors(x)
    whole = vectors[dim]
    if whole is not None:
        first, second = whole.chunk(2)
        ledger.labels.tie(first, second)
        vectors[dim] = first
    ledger.set(call.out, vectors)


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.mm, aten.bmm), product),
    **dict.fromkeys((aten.addmm, aten.baddbmm), added_product),
    aten.linear: linear,
    **dict.fromkeys((aten.mv, aten.dot), vector_product),
    **dict.fromkeys((aten.convolution, aten._convolution), convolution),
    aten.embedding: embedding,
    **dict.fromkeys(
        (aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.cudnn_batch_norm),
        batch_norm,
    ),
    **dict.fromkeys((aten.native_layer_norm, aten._fused_rms_norm), layer_norm),
    aten.native_group_norm: group_norm,
    **dict.fromkeys(
        (
            aten.mean,
            aten.sum,
            aten.amax,
            aten.amin,
            aten.max,
            aten.min,
            aten.var,
            aten.std,
            aten.var_mean,
            aten.linalg_vector_norm,
            aten.logsumexp,
            aten.argmax,
            aten.any,
            aten.all,
        ),
        reduction,
    ),
    **dict.fromkeys((aten._softmax, aten._log_softmax, aten._safe_softmax, aten.cumsum), softmax),
    **dict.fromkeys(
        (
            aten._adaptive_avg_pool2d,
            aten.avg_pool2d,
            aten.max_pool2d_with_indices,
            aten.adaptive_max_pool2d,
            aten.avg_pool3d,
            aten.max_pool3d_with_indices,
            aten.upsample_nearest2d,
            aten.upsample_bilinear2d,
            aten.upsample_nearest1d,
            aten.upsample_bicubic2d,
            aten._upsample_nearest_exact2d,
        ),
        spatial,
    ),
    aten.glu: gated,
    **dict.fromkeys(
        (aten.detach, aten.alias, aten.clone, aten.lift_fresh, aten._to_copy), identity
    ),
    **dict.fromkeys((aten.tril, aten.triu, aten.contiguous, aten.lift_fresh_copy), identity),
    **dict.fromkeys((aten.zeros_like, aten.ones_like, aten.empty_like, aten.full_like), like),
    **dict.fromkeys((aten.rand_like, aten.randn_like), like),
    **dict.fromkeys((aten.new_zeros, aten.new_ones, aten.new_empty, aten.new_full), made),
    **dict.fromkeys(
        (
            aten.hardswish,
            aten.hardtanh,
            aten.hardsigmoid,
            aten.masked_fill,
            aten.copy_,
            aten.hardswish_,
            aten.hardtanh_,
            aten.hardsigmoid_,
            aten.masked_fill_,
            aten.leaky_relu_,
            aten.native_dropout,
            aten.relu6,
        ),
        pointwise,
    ),
}
