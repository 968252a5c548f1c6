"""Learning a policy from rewards of what it did: advantages, and losses made of them.

What one decision was worth beside the others (an advantage) goes into a loss whose gradient makes
good decisions likelier. `learn.leave_one_out` is the plain estimator; these are the ones that reuse
samples for several updates.

Legend: N decisions, B episodes, S steps of an episode.
"""

import torch
from torch import Tensor

from pointsman.errors import InputError


def group_advantages(rewards: Tensor, groups: Tensor, *, floor: float = 1e-6) -> Tensor:
    """(reward - mean of its group) / standard deviation of its group.

    The advantage of Group Relative Policy Optimization (Shao et al. 2024, "DeepSeekMath", arXiv
    2402.03300): samples for the same prompt are one group, which makes a critic needless.

    Args:
        rewards: (N,) floating point.
        groups: (N,) int64, numbers of groups from 0.
        floor: a group whose rewards differ by less has advantages of 0: nothing is to be learned.

    Returns:
        (N,), without gradient. The standard deviation is that of the population.

    Raises:
        InputError: shapes that differ, or groups that are not int64.
    """
    if rewards.shape != groups.shape or rewards.ndim != 1 or groups.dtype != torch.int64:
        raise InputError(
            "each reward needs the number of its group: (N,) floating point and (N,) int64, got "
            f"{tuple(rewards.shape)} and {tuple(groups.shape)} {groups.dtype}"
        )
    rewards = rewards.detach()
    count = int(groups.max()) + 1 if len(groups) else 0
    size = torch.bincount(groups, minlength=count).to(rewards.dtype).clamp_min(1)
    centred = rewards - _means(rewards, groups, size)[groups]
    spread = _means(centred.square(), groups, size).sqrt()[groups]
    return torch.where(spread > floor, centred / spread.clamp_min(floor), torch.zeros_like(centred))


def generalized_advantages(
    rewards: Tensor, values: Tensor, alive: Tensor, *, discount: float = 1.0, decay: float = 0.95
) -> Tensor:
    """Advantages of the steps of episodes, from rewards and a critic's values.

    With d_s = r_s + discount * V_(s+1) - V_s, the sum over later steps of
    (discount * decay)^k d_(s+k) (Schulman et al. 2015, "High-Dimensional Continuous Control Using
    Generalized Advantage Estimation", arXiv 1506.02438). V is 0 after the last step.

    Args:
        rewards: (B, S) received after each step.
        values: (B, S) what the critic expected from each step on.
        alive: (B, S) bool, whether the episode took this step.
        discount: of later rewards, in [0, 1].
        decay: 0 trusts the critic after one step, 1 waits for the end.

    Returns:
        (B, S) without gradient; 0 where no step was taken.

    Raises:
        InputError: shapes that differ.
    """
    if not rewards.shape == values.shape == alive.shape or rewards.ndim != 2:
        shapes = [tuple(t.shape) for t in (rewards, values, alive)]
        raise InputError(f"rewards, values and alive must be (episodes, steps), got {shapes}")
    values = torch.where(alive, values.detach(), torch.zeros_like(values))
    rewards = torch.where(alive, rewards.detach(), torch.zeros_like(rewards))
    found = torch.zeros_like(rewards)
    later = next_value = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        surprise = rewards[:, step] + discount * next_value - values[:, step]
        found[:, step] = surprise + discount * decay * later
        later, next_value = found[:, step], values[:, step]
    return torch.where(alive, found, torch.zeros_like(found))


def clipped_surrogate(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip: float = 0.2
) -> Tensor:
    """Mean of -min(ratio * advantage, clip(ratio, 1 - clip, 1 + clip) * advantage).

    The loss of Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347): samples of an
    older policy serve for several updates, as long as probabilities stay near what they were.

    Args:
        log_probs: (N,) of what was done, under the policy; gradients flow.
        old_log_probs: (N,) under the policy that did it.
        advantages: (N,)
        clip: above 0.

    Returns:
        Scalar; 0 for no decision.

    Raises:
        InputError: different shapes, or a clip that is not above 0.
    """
    if not log_probs.shape == old_log_probs.shape == advantages.shape:
        shapes = [tuple(t.shape) for t in (log_probs, old_log_probs, advantages)]
        raise InputError(f"log-probabilities and advantages must have one shape, got {shapes}")
    if not clip > 0:
        raise InputError(f"clip must be above 0, got {clip}")
    ratio = (log_probs - old_log_probs.detach()).exp()
    advantages = advantages.detach()
    kept = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -kept.sum() / max(kept.numel(), 1)


def divergence(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Mean of exp(d) - d - 1 with d = reference - policy: the divergence from a reference.

    Of samples of the policy, an unbiased and never negative estimate of KL(policy | reference), as
    in GRPO (arXiv 2402.03300).

    Args:
        log_probs: (N,) of what the policy did; gradients flow.
        reference_log_probs: (N,) of the same under the reference.

    Raises:
        InputError: different shapes.
    """
    if log_probs.shape != reference_log_probs.shape:
        raise InputError(
            f"log-probabilities must have one shape, got {tuple(log_probs.shape)} and "
            f"{tuple(reference_log_probs.shape)}"
        )
    gap = reference_log_probs.detach() - log_probs
    return (gap.exp() - gap - 1).sum() / max(gap.numel(), 1)


def _means(values_N: Tensor, groups_N: Tensor, size_G: Tensor) -> Tensor:
    return torch.zeros_like(size_G).index_add(0, groups_N, values_N) / size_G
