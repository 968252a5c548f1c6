"""One of several that all ran, chosen with noise. Legend: T choosers, E alternatives."""

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.select import gumbel
from pointsman.select.checks import check_scores


def gumbel_choice(
    scores_TE: Tensor, *, temperature: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """A one-hot row for each chooser, drawn from softmax(scores), with the soft draw's gradient.

    Multiplied with the outputs of all alternatives it gives the full straight-through gradient, to
    those that were not drawn too: for choosers whose alternatives run anyway. Where only what was
    drawn runs, `select.gumbel` is the way. (Jang et al. 2016, "Categorical reparameterization with
    Gumbel-softmax", arXiv:1611.01144.)

    Args:
        scores_TE: floating point logits; -inf is never drawn.
        temperature: of the soft draw, above 0; it does not change which is drawn.
        generator: of the noise; None means torch's global one.

    Returns:
        (T, E), values 0 and 1 in the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores, or a temperature that is not above 0.
    """
    check_scores(scores_TE)
    every = scores_TE.shape[1]
    route = gumbel(scores_TE, every, temperature=temperature, hard=False, generator=generator)
    soft_TE = route.to_dense()
    # The soft draw is largest at the branch that was drawn.
    hard_TE = functional.one_hot(soft_TE.detach().argmax(dim=1), every).to(scores_TE.dtype)
    return hard_TE + (soft_TE - soft_TE.detach())
