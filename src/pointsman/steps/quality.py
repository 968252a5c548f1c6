"""How good samples are: against the full sampler one by one, against data as a crowd.

A frontier needs a quality per sample in [0, 1]. `faithfulness` is one minus the relative distance
to what the full sampler makes of the same starting noise, no less than 0: a mean drop of 0.02 is a
mean relative distance of 2%, and `certify` promises just that. Distances between crowds have no
value per sample and are not certified.

Legend: n and m samples, D dimensions, P projections.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.frontier.points import Knob, Outcomes
from pointsman.steps.sampling import Sampled


def relative_distance(x: Tensor, reference: Tensor) -> Tensor:
    """(n,) distance of each sample to its reference, in units of the reference's spread.

    The spread is the root of the mean squared distance of the references to their mean, so that 1
    is about as far as leaving everything at the mean would be.

    Raises:
        InputError: shapes that differ, or references that are all the same.
    """
    if x.shape != reference.shape or x.ndim < 2:
        raise InputError(
            "samples and references are (n, ...) of one shape, got "
            f"{tuple(x.shape)} and {tuple(reference.shape)}"
        )
    flat = reference.flatten(1)
    spread = (flat - flat.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    if not float(spread) > 0:
        raise InputError("a distance relative to the spread needs references that differ")
    distance: Tensor = (x - reference).flatten(1).norm(dim=1) / spread
    return distance


def faithfulness(x: Tensor, reference: Tensor) -> Tensor:
    """(n,) in [0, 1]: one minus the relative distance to the reference, at least 0."""
    return (1 - relative_distance(x, reference)).clamp(0, 1)


def step_outcomes(runs: Mapping[Knob, Sampled], reference: Sampled) -> Outcomes:
    """Runs of several policies from the same noise, against the full sampler, sample by sample.

    Args:
        runs: knob → run, the safest first, as `certify` tests them.
        reference: the full sampler's run from the same noise; its quality is 1 by definition.

    Raises:
        InputError: no run, runs of other shapes, or in another unit.
    """
    if not runs:
        raise InputError("at least one run is compared with the full sampler, got none")
    units = {run.per_evaluation.unit for run in (reference, *runs.values())}
    if len(units) > 1:
        raise InputError(f"runs are compared in one unit, got {sorted(units)}")
    quality = [faithfulness(run.x, reference.x).double().numpy(force=True) for run in runs.values()]
    return Outcomes(
        knobs=tuple(runs),
        quality=np.stack(quality),
        cost=np.stack([np.asarray(run.cost.amount) for run in runs.values()]),
        reference_quality=np.ones(len(reference.x)),
        reference_cost=np.asarray(reference.cost.amount),
        unit=units.pop(),
    )


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 128, generator: torch.Generator | None = None
) -> float:
    """Root mean squared distance of two crowds along random directions (Rabin et al. 2011).

    Args:
        x: (n, ...).
        y: (m, ...), of the same size per sample.
        projections: P.
        generator: of the directions; give one, seeded, to compare several crowds.

    Raises:
        InputError: samples of different sizes, or none.
    """
    a, b = x.flatten(1), y.flatten(1)
    if a.shape[1:] != b.shape[1:] or not len(a) or not len(b):
        raise InputError(
            f"two crowds of samples of one size are compared, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=a.dtype)
    directions = directions / directions.norm(dim=0)
    levels = (torch.arange(256, dtype=a.dtype) + 0.5) / 256
    gap = (a @ directions).quantile(levels, dim=0) - (b @ directions).quantile(levels, dim=0)
    return float(gap.square().mean().sqrt())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| (Székely & Rizzo 2013): 0 for equal laws alone.

    Pairs of a sample with itself are left out, so that the estimate is unbiased and may fall below
    0.

    Raises:
        InputError: samples of different sizes, or fewer than two.
    """
    a, b = x.flatten(1).double(), y.flatten(1).double()
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise InputError(
            f"two crowds of at least two samples of one size are compared, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )

    def inner(rows: Tensor) -> Tensor:
        return torch.cdist(rows, rows).sum() / (len(rows) * (len(rows) - 1))

    return float(2 * torch.cdist(a, b).mean() - inner(a) - inner(b))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Distance of two Gaussians with the crowds' means and covariances, squared.

    |mean_x - mean_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), what the FID (Heusel et al. 2017,
    arXiv 1706.08500) measures, over the features given.

    Raises:
        InputError: samples of different sizes, or fewer than two.
    """
    a, b = x.flatten(1).double(), y.flatten(1).double()
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise InputError(
            f"two crowds of at least two samples of one size are compared, got {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    covariances: Sequence[Tensor] = [rows.T.cov() for rows in (a, b)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * common)
