"""The Gumbel straight-through estimator for a route that is drawn already.

Legend: T inputs, E branches, N pairs, K slots of one input.
"""

import torch
from torch import Tensor

from pointsman.learn.common import check_pairs, columns, of_pairs, slots
from pointsman.route import Route
from pointsman.select.checks import check_count, check_positive
from pointsman.select.noise import gumbel_like
from pointsman.select.weighing import softmax


def gumbel_straight_through(
    scores: Tensor,
    route: Route,
    *,
    temperature: float = 1.0,
    draws: int = 1,
    generator: torch.Generator | None = None,
) -> Route:
    """Every pair weighs exactly one, with the gradient of a soft draw that agrees with the route.

    The route must have been drawn from softmax(scores) without putting back, in order, as
    `select.categorical` does. The Gumbel noise behind it is then drawn anew, given who won, and
    the soft draw is softmax((scores + noise) / temperature). With one draw this is in distribution
    what `select.gumbel` gives (Jang et al. 2016, "Categorical reparameterization with
    Gumbel-softmax", arXiv 1611.01144); the mean of several has the same expectation and less
    variance (Paulus et al. 2020, "Rao-Blackwellizing the straight-through Gumbel-softmax gradient
    estimator", arXiv 2010.04838). The estimate is biased, as `straight_through` is.

    Args:
        scores: (T, E) floating point logits; -inf marks a branch as not eligible.
        route: drawn from them.
        temperature: of the soft draw, above 0.
        draws: of the noise, at least 1.
        generator: of the noise; None means torch's global one.

    Returns:
        The same pairs; weights have the type of the scores.

    Raises:
        RouteError: scores that do not fit the route, NaN or +inf among them (on a CPU), or a
            number out of range.
    """
    check_pairs(scores, route)
    check_positive(temperature, "temperature")
    check_count(draws, "draws", 1)
    branches_TK = slots(route)
    wide_TE = scores.detach().to(torch.float64)
    soft_N = scores.new_zeros(len(route))
    for _ in range(draws):
        noisy_TE = _given_winners(wide_TE, branches_TK, generator)
        # What was added to the scores is held fixed, so that gradients are those of the scores.
        noise_TE = (noisy_TE - wide_TE).masked_fill(wide_TE == -torch.inf, 0.0).to(scores.dtype)
        soft_TE = softmax((scores + noise_TE) / temperature)
        soft_N = soft_N + of_pairs(soft_TE, route) / draws
    return route.weighted(1.0 + (soft_N - soft_N.detach()))


def _given_winners(
    scores_TE: Tensor, branches_TK: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Scores with Gumbel noise whose largest are these branches, in this order.

    The largest of all is a Gumbel variable around their log-sum-exp; each next one is such a
    variable around what is left, cut off at the one before; the rest are cut off at the last one.
    """
    noise_TE = gumbel_like(scores_TE, generator)
    left_TE, noisy_TE = scores_TE, scores_TE
    ceiling_T1 = scores_TE.new_full((len(scores_TE), 1), torch.inf)
    for branch_T1 in columns(branches_TK):
        taken_T1 = branch_T1 >= 0
        index_T1 = branch_T1.clamp(min=0)
        top_T1 = left_TE.logsumexp(dim=1, keepdim=True) + noise_TE.gather(1, index_T1)
        top_T1 = _cut_off(top_T1, ceiling_T1)
        ceiling_T1 = torch.where(taken_T1, top_T1, ceiling_T1)
        kept_T1 = noisy_TE.gather(1, index_T1)
        noisy_TE = noisy_TE.scatter(1, index_T1, torch.where(taken_T1, top_T1, kept_T1))
        gone_T1 = torch.where(taken_T1, -torch.inf, left_TE.gather(1, index_T1))
        left_TE = left_TE.scatter(1, index_T1, gone_T1)
    rest_TE = _cut_off(left_TE + noise_TE, ceiling_T1)
    return torch.where(left_TE == -torch.inf, noisy_TE, rest_TE)


def _cut_off(draws: Tensor, ceiling: Tensor) -> Tensor:
    """Gumbel draws turned into draws of the same variables below a ceiling."""
    return -torch.logaddexp(-ceiling, -draws)
