"""Rows of a state: how many there are, some of them, and what all of them share.

Legend: n rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pointsman.errors import InputError
from pointsman.run import State


def tensors(state: State) -> list[Tensor]:
    """The tensors of a state, in order."""
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]


def count_rows(state: State) -> int:
    """n, from the first tensor of a state.

    Raises:
        InputError: no tensor, or one without rows.
    """
    found = tensors(state)
    if not found or found[0].ndim == 0:
        got = tuple(found[0].shape) if found else type(state).__name__
        raise InputError(
            "a batch is a tensor, or tuples, lists and dicts of tensors, with one row per input, "
            f"got {got}"
        )
    return found[0].shape[0]  # not len(), which export would take for a constant


def checked_batch(example: Any) -> int:
    """How many inputs an example holds, at least one.

    Raises:
        InputError: an empty batch, no tensors, or tensors of different numbers of rows.
    """
    found = tensors(example)
    rows = {len(x) if x.ndim else 0 for x in found}
    if len(rows) != 1 or 0 in rows:
        shapes = ", ".join(str(tuple(x.shape)) for x in found) or type(example).__name__
        raise InputError(
            "an example is a batch of at least one input, a tensor or tuples, lists and dicts of "
            f"tensors with one row each per input, got {shapes}"
        )
    return rows.pop()


def take_rows(state: State, rows: Tensor | slice) -> State:
    """A state of some rows only."""
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, state)


def blank_row(state: State) -> State:
    """A state of one row of zeros, shaped like the rows of another."""

    def blank(leaf: Any) -> Any:
        return leaf.new_zeros(1, *leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf

    return tree_map(blank, state)


def several_rows(example: Any, rows: int) -> Any:
    """So many inputs from an example: its first ones, then shifted copies of them.

    Copies are shifted along their last dimension, so that no two rows need be equal.
    """
    have = checked_batch(example)

    def spread(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        copies = [leaf[at % have] for at in range(rows)]
        shifts = [at // have for at in range(rows)]
        return torch.stack(
            [x.roll(s, dims=-1) if x.ndim else x for x, s in zip(copies, shifts, strict=True)]
        )

    return tree_map(spread, example)


def share(x: Tensor, n: int) -> Tensor:
    """What all inputs share as n rows, (n, *x.shape), without a copy until rows are taken."""
    return x.unsqueeze(0).expand(n, *x.shape)


def shared(rows: Tensor) -> Tensor:
    """What `share` was given; zeros where no row is left."""
    return rows[0] if rows.shape[0] else rows.new_zeros(rows.shape[1:])
