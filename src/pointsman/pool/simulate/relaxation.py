"""Sequences of linear systems for a solver whose parameter is learned.

Successive over-relaxation solves A x = b by x <- x + M^-1 (b - A x) with M = D / omega + L, D the
diagonal and L what is below it. How many iterations it needs depends much on omega, and that is all
that is seen.

Legend: D unknowns, W values of omega, C offsets, R right-hand sides.
"""

import math

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.online.bandit import Array


def laplacian(side: int) -> Array:
    """(D, D) five-point Laplacian on a square of side * side inner points, 4 on the diagonal."""
    line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    one = np.eye(side)
    both: Array = np.kron(line, one) + np.kron(one, line)
    return both


def best_omega(matrix: Array) -> float:
    """1 + (s / (1 + sqrt(1 - s^2)))^2, s the spectral radius of Jacobi's iteration (Young 1950).

    Raises:
        InputError: Jacobi's iteration does not converge, so the formula does not hold.
    """
    jacobi = np.eye(len(matrix)) - matrix / np.diag(matrix)[:, None]
    radius = float(np.abs(np.linalg.eigvals(jacobi)).max())
    if radius >= 1:
        raise InputError(f"the formula needs a spectral radius below 1, got {radius:.3g}")
    return 1.0 + (radius / (1.0 + math.sqrt(1.0 - radius * radius))) ** 2


def iterations(
    matrix: Array,
    omegas: Array,
    offsets: Array,
    right: Array,
    *,
    tolerance: float = 1e-6,
    most: int = 10_000,
) -> npt.NDArray[np.int64]:
    """(W, C, R) iterations until the residual has fallen to a share of the right-hand side.

    All systems (matrix + offset I) x = b are solved at once, from x = 0; those that are done are
    left out every few iterations.

    Args:
        matrix: (D, D).
        omegas: (W,) in (0, 2).
        offsets: (C,) added to the diagonal.
        right: (R, D) right-hand sides.
        tolerance: share of the norm of b that the residual has to fall to.
        most: iterations after which a system is given up, and counted as so many.

    Raises:
        InputError: an omega outside (0, 2).
    """
    if not ((omegas > 0) & (omegas < 2)).all():
        raise InputError(f"omega must lie in (0, 2), got {omegas}")
    systems = matrix + offsets[:, None, None] * np.eye(len(matrix))  # (C, D, D)
    below, diagonal = np.tril(systems, -1), np.diagonal(systems, axis1=1, axis2=2)
    split = below + diagonal[:, None] * np.eye(len(matrix)) / omegas[:, None, None, None]
    # the residual itself follows r <- (I - A M^-1) r, so x is not needed
    step = np.eye(len(matrix)) - systems @ np.linalg.inv(split)  # (W, C, D, D)
    flat = step.reshape(-1, *matrix.shape)
    residual = np.broadcast_to(right.T, (len(flat), *right.T.shape)).copy()
    goal = tolerance * np.linalg.norm(right, axis=1)
    needed = np.full((len(flat), len(right)), most, dtype=np.int64)
    left = np.arange(len(flat))
    for count in range(1, most + 1):
        residual = flat @ residual
        done = np.linalg.norm(residual, axis=1) <= goal
        needed[left] = np.where(done, np.minimum(needed[left], count), needed[left])
        if count % 16 == 0:
            going = (needed[left] == most).any(axis=1) & np.isfinite(residual).all(axis=(1, 2))
            flat, residual, left = flat[going], residual[going], left[going]
            if not len(left):
                break
    return needed.reshape(len(omegas), len(offsets), len(right))
