"""Branches drawn at random. Legend: T inputs, E branches, K = k."""

import torch
from torch import Tensor

from pointsman.route import Route
from pointsman.select.checks import check_k, check_positive, check_scores
from pointsman.select.guarantee import guarantees
from pointsman.select.noise import gumbel_like
from pointsman.select.weighing import softmax


@guarantees(batch_independent=True, causal=True)
def categorical(
    scores: Tensor,
    k: int = 1,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Route:
    """Each input draws k branches from the softmax of its scores, without putting back.

    Guarantee: exactly k branches, or all eligible ones where fewer are, in the order they were
    drawn. Batch independent and causal in this sense: with the same seed and the same row position,
    an input draws the same branches whatever the other rows hold, and on a CPU however many rows
    follow (on a GPU, for a given shape of the batch).

    The k largest of scores plus Gumbel noise are such a draw (Kool et al. 2019, "Stochastic beams
    and where to find them", arXiv 1903.06059).

    Args:
        scores: (T, E) floating point logits; -inf is never chosen.
        k: branches of each input, 1 to E.
        temperature: scores are divided by it; small is greedy, large is uniform.
        generator: source of the draws; None means torch's global one.

    Returns:
        A route whose weights are the probabilities softmax(scores / temperature), not normalised
        over the chosen, with the type and the gradient of the scores.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, or a
            temperature that is not above 0.
    """
    scaled_TE = _scaled(scores, k, temperature)
    branches_TK, taken_TK = _draw(scaled_TE.detach() + gumbel_like(scores, generator), k)
    weights_TK = softmax(scaled_TE).gather(1, branches_TK)
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1), weights_TK, num_branches=scores.shape[1]
    )


@guarantees(batch_independent=True, causal=True)
def gumbel(
    scores: Tensor,
    k: int = 1,
    *,
    temperature: float = 1.0,
    hard: bool = True,
    generator: torch.Generator | None = None,
) -> Route:
    """Each input draws k branches as `categorical` does; weights carry the draw's gradient.

    Guarantee: exactly k branches, or all eligible ones where fewer are, in the order they were
    drawn; the draw is from softmax(scores) whatever the temperature. Batch independent and causal
    in the sense of `categorical`.

    The soft draw is softmax((scores + Gumbel noise) / temperature) (Jang et al. 2016, "Categorical
    reparameterization with Gumbel-softmax", arXiv 1611.01144; Maddison et al. 2016, "The concrete
    distribution", arXiv 1611.00712). Branches that were not drawn do not run, so their share of the
    papers' gradient, through the outputs they would have given, is missing here.

    Args:
        scores: (T, E) floating point logits; -inf is never chosen.
        k: branches of each input, 1 to E.
        temperature: of the soft draw; small is close to one-hot with large gradients.
        hard: True gives weights of exactly one with the gradient of the soft draw
            ("straight-through"); False gives the soft draw itself.
        generator: source of the draws; None means torch's global one.

    Returns:
        A route whose weights have the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), k out of range, or a
            temperature that is not above 0.
    """
    scaled_TE = _scaled(scores, k, temperature)
    noise_TE = gumbel_like(scores, generator)
    branches_TK, taken_TK = _draw(scores.detach() + noise_TE, k)
    soft_TE = softmax(scaled_TE + (noise_TE / temperature).to(scores.dtype))
    weights_TK = soft_TE.gather(1, branches_TK)
    if hard:
        weights_TK = 1.0 + (weights_TK - weights_TK.detach())
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1), weights_TK, num_branches=scores.shape[1]
    )


def _scaled(scores_TE: Tensor, k: int, temperature: float) -> Tensor:
    check_scores(scores_TE)
    check_k(k, scores_TE.shape[1])
    check_positive(temperature, "temperature")
    return scores_TE / temperature


def _draw(noisy_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best_TK, branches_TK = noisy_TE.topk(k, dim=1)
    return branches_TK, best_TK > -torch.inf
