"""Branches by hash of an id, without any score. Legend: T inputs, E branches, K = k."""

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_k
from pointsman.select.guarantee import guarantees

MASK = 2**64 - 1


@guarantees(batch_independent=True, causal=True)
def hashed(ids: Tensor, num_branches: int, *, k: int = 1, seed: int = 0) -> Route:
    """Each input takes k distinct branches that depend on its id and the seed alone.

    Guarantee: exactly k distinct branches, the same for equal ids in every process, on every
    platform and device; over many ids all branches, and all orders of k of them, are about equally
    frequent. Batch independent and causal. (Roller et al. 2021, "Hash layers for large sparse
    models", arXiv 2106.04426. Their best variants balance by token frequency; this is the plain
    random hash.)

    Args:
        ids: (T,) integers, such as token ids.
        num_branches: E.
        k: branches of each input, 1 to E.
        seed: any whole number; another seed is another hash.

    Returns:
        A route whose weights are 1 / k, in torch's default type, without gradient.

    Raises:
        RouteError: ids of another shape or type, or k out of range.
    """
    if ids.ndim != 1 or ids.dtype.is_floating_point or ids.dtype in (torch.bool, torch.complex64):
        raise RouteError(
            f"ids must be integers of shape (inputs,), got {ids.dtype} of {tuple(ids.shape)}"
        )
    check_k(k, num_branches)
    state = _mix(ids.long() ^ _signed(_mix_number(seed & MASK)))
    branches: list[Tensor] = []
    for slot in range(k):
        # The n-th branch that is still free, n by hash: skip over those taken, lowest first.
        state = _mix(state + _signed(0x9E3779B97F4A7C15))
        branch = (state & (2**63 - 1)) % (num_branches - slot)
        if branches:
            for taken in torch.stack(branches).sort(dim=0).values:
                branch = branch + (branch >= taken)
        branches.append(branch)
    branches_TK = torch.stack(branches, dim=1)
    weights_TK = torch.full(
        branches_TK.shape, 1.0 / k, dtype=torch.get_default_dtype(), device=ids.device
    )
    return Route.from_indices(branches_TK, weights_TK, num_branches=num_branches)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap around."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _mix_number(x: int) -> int:
    """`_mix` of one unsigned number."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift to the right that fills with zeros, where torch's own fills with the sign."""
    return (x >> bits) & (MASK >> bits)


def _signed(x: int) -> int:
    """The int64 of the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x
