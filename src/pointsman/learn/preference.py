"""Learning from pairs of which one is preferred. Legend: N pairs."""

from torch import Tensor
from torch.nn import functional

from pointsman.errors import InputError


def direct_preference(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """Mean of -log sigmoid(beta * (gain of the chosen - gain of the rejected)).

    The gain of an output is its log-probability under the policy less that under the reference. The
    least is reached by the policy that a reward model of the same pairs and a penalty of beta times
    the divergence from the reference would lead to. (Rafailov et al. 2023, "Direct Preference
    Optimization: Your Language Model is Secretly a Reward Model", arXiv 2305.18290.)

    Args:
        chosen: (N,) log-probabilities of the preferred outputs under the policy; gradients flow.
        rejected: (N,) of the others.
        reference_chosen: (N,) under the reference; no gradient flows.
        reference_rejected: (N,)
        beta: above 0; a large one keeps the policy near the reference.

    Returns:
        Scalar; 0 for no pair.

    Raises:
        InputError: different shapes, or a beta that is not above 0.
    """
    shapes = [tuple(t.shape) for t in (chosen, rejected, reference_chosen, reference_rejected)]
    if len(set(shapes)) > 1:
        raise InputError(f"log-probabilities of pairs must have one shape (N,), got {shapes}")
    if not beta > 0:
        raise InputError(f"beta must be above 0, got {beta}")
    gain = chosen - rejected - (reference_chosen - reference_rejected).detach()
    return -functional.logsigmoid(beta * gain).sum() / max(gain.numel(), 1)
