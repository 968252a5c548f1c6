"""Random draws for selections, made so that a row's draw does not hang on the rows below it."""

import torch
from torch import Tensor


def uniform_like(scores_TE: Tensor, generator: torch.Generator | None) -> Tensor:
    """(T, E) float64 draws strictly between 0 and 1, one after the other, row by row.

    On a CPU the draws of row t depend on the state of the generator, on t and on E alone, not on
    how many rows follow (torch's own normal draws do not have this property). On a GPU they depend
    on T as well.
    """
    draws = torch.rand(
        scores_TE.shape, dtype=torch.float64, device=scores_TE.device, generator=generator
    )
    return draws.clamp_(min=torch.finfo(torch.float64).tiny)


def gumbel_like(scores_TE: Tensor, generator: torch.Generator | None) -> Tensor:
    """(T, E) float64 draws of the standard Gumbel distribution."""
    return -(-uniform_like(scores_TE, generator).log()).log()


def normal_like(scores_TE: Tensor, generator: torch.Generator | None) -> Tensor:
    """(T, E) float64 draws of the standard normal distribution."""
    draws: Tensor = torch.special.ndtri(uniform_like(scores_TE, generator))
    return draws
