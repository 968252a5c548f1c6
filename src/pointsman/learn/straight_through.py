"""Weights of one value with the gradient of another. Legend: T inputs, E branches, N pairs."""

import torch
from torch import Tensor

from pointsman.learn.common import check_pairs, log_softmax, of_inputs, of_pairs
from pointsman.route import Route


def straight_through(scores: Tensor, route: Route, *, temperature: float = 1.0) -> Route:
    """Every pair weighs exactly one, with the gradient of its softmax probability.

    The estimate is biased: branches that were not taken do not run, so what they would have
    answered is missing from it. (Bengio et al. 2013, "Estimating or propagating gradients through
    stochastic neurons", arXiv 1308.3432.)

    Args:
        scores: (T, E) floating point; -inf marks a branch as not eligible.
        route: chosen from them.
        temperature: scores are divided by it for the gradient.

    Returns:
        The same pairs; weights have the type of the scores.

    Raises:
        RouteError: scores that do not fit the route, or NaN or +inf among them (on a CPU).
    """
    check_pairs(scores, route)
    soft_N = of_pairs(log_softmax(scores / temperature), route).exp()
    return route.weighted(1.0 + (soft_N - soft_N.detach()))


def rectified_straight_through(scores: Tensor, route: Route) -> Route:
    """Weights as they are, made to sum to one, with the gradient of a softmax over all branches.

    For a route weighed by softmax this is g_ij / sg(sum of the taken g), with g the softmax over
    all branches and sg a stopped gradient. So a branch that was not taken gets gradient too, and
    with k = 1, where weights that sum to one are constant, the router learns all the same. (Zeng et
    al. 2024, "Turn waste into worth: rectifying top-k router of MoE", arXiv 2402.12399.)

    Args:
        scores: (T, E) floating point; -inf marks a branch as not eligible.
        route: chosen from them; weights not negative.

    Returns:
        The same pairs; weights have the type of the scores.

    Raises:
        RouteError: scores that do not fit the route, or NaN or +inf among them (on a CPU).
    """
    check_pairs(scores, route)
    size_N = route.weights.detach().to(scores.dtype)
    total_N = of_inputs(size_N, route)
    size_N = size_N / torch.where(total_N == 0, 1.0, total_N)
    log_N = of_pairs(log_softmax(scores), route)
    # The derivative of w * log g is (w / g) dg: the ratio never becomes 0 / 0 this way.
    return route.weighted(size_N * (1.0 + (log_N - log_N.detach())))
