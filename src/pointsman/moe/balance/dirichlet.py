"""Probabilities that look like draws from a Dirichlet distribution. Legend: T tokens, E experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.balance.common import nothing, wide
from pointsman.select.weighing import softmax

if TYPE_CHECKING:
    from pointsman.moe.layer import MoE, Routing

LEAST = 1e-4  # probabilities are kept this far from 0 and 1, where a density can be infinite
STEEPEST = 50.0  # limit of the density, which is what the gradient is multiplied by


class DirichletPrior:
    """Squared distance between the probabilities of each expert and their Dirichlet marginal.

    If the probabilities of a token were drawn from Dirichlet(alpha), those of expert e would be
    distributed as Beta(alpha_e, sum(alpha) - alpha_e). For each expert the cumulative distribution
    of that Beta, at the sorted probabilities of the batch, is compared with the ranks; the mean
    squared difference is the loss, at most 1/3. Equal alphas below 1 ask for sure and balanced
    tokens, large ones for even probabilities, unequal ones for unequal loads. (Mirvakhabova et al.
    2025, "Dirichlet-prior shaping", arXiv 2510.01185.)

    Where we depart: the exact distance of the paper is not known to us, the squared one is ours.
    One alpha for all tokens of a layer. Needs hundreds of tokens to mean much. The cumulative
    distribution is computed on the CPU, so that a GPU is waited for.

    Args:
        alpha: concentration, above 0: one number for every expert, or (E,) of them.

    Raises:
        InputError: an alpha that is not above 0.
    """

    def __init__(self, alpha: float | Sequence[float]) -> None:
        self.alpha = (alpha,) if isinstance(alpha, int | float) else tuple(alpha)
        if not self.alpha or not all(0 < value < float("inf") for value in self.alpha):
            raise InputError(f"alpha must be finite and above 0, got {alpha!r}")

    def __call__(self, routing: "Routing", layer: "MoE | None" = None) -> Tensor:
        """Scalar in the type of the scores, 0 for an empty batch and for a single expert.

        Raises:
            InputError: another number of alphas than experts.
        """
        scores_TE = routing.scores
        tokens, experts = scores_TE.shape
        if len(self.alpha) not in (1, experts):
            raise InputError(
                f"alpha must be one number or one for each of {experts} experts, "
                f"got {len(self.alpha)} of them"
            )
        if tokens == 0 or experts == 1:
            return nothing(scores_TE)
        sorted_TE = softmax(wide(scores_TE)).sort(dim=0).values
        rank_T = torch.arange(tokens, device=scores_TE.device, dtype=sorted_TE.dtype)
        target_T1 = ((rank_T + 0.5) / tokens)[:, None]
        reached_TE = _beta_cdf(sorted_TE, np.broadcast_to(self.alpha, (experts,)))
        return (reached_TE - target_T1).square().mean().to(scores_TE.dtype)


def _beta_cdf(p_TE: Tensor, alpha_E: "np.ndarray[Any, Any]") -> Tensor:
    """Cumulative distribution of the marginals of Dirichlet(alpha), with its density as gradient.

    Torch has no incomplete beta function. The value comes from SciPy, the gradient is attached by
    a difference that is zero.
    """
    from scipy.special import betainc, betaln

    p = p_TE.detach().to(torch.float64).clamp(LEAST, 1 - LEAST).numpy(force=True)
    a, b = alpha_E, alpha_E.sum() - alpha_E
    log_density = (a - 1) * np.log(p) + (b - 1) * np.log1p(-p) - betaln(a, b)
    density = np.exp(np.minimum(log_density, np.log(STEEPEST)))
    value_TE, slope_TE = (
        torch.as_tensor(table, device=p_TE.device).to(p_TE.dtype)
        for table in (betainc(a, b, p), density)
    )
    return value_TE + slope_TE * (p_TE - p_TE.detach())
