"""Advantages and losses against loops; gradients against differences and expectations."""

import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.learn.policy_gradient import (
    clipped_surrogate,
    divergence,
    generalized_advantages,
    group_advantages,
)
from pointsman.learn.preference import direct_preference


def test_advantages_are_normal_within_each_group_alone():
    rewards = torch.tensor([1.0, 0.0, 5.0, 9.0, 7.0, 2.0, 2.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    found = group_advantages(rewards, groups)
    for group in range(2):
        own = rewards[groups == group]
        assert_close(found[groups == group], (own - own.mean()) / own.std(correction=0))
    assert found[groups == 2].tolist() == [0, 0]
    moved = rewards.clone()
    moved[groups == 1] += 100
    assert_close(group_advantages(moved, groups)[:2], found[:2])
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_generalized_advantages_are_the_sum_of_later_surprises():
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 4, 5, dtype=torch.float64)
    length = [5, 3, 1, 0]
    alive = torch.arange(5) < torch.tensor(length)[:, None]
    found = generalized_advantages(rewards, values, alive, discount=0.9, decay=0.8)
    for episode, steps in enumerate(length):
        for step in range(5):
            wanted = 0.0
            for later in range(step, steps):
                after = values[episode, later + 1] if later + 1 < steps else 0.0
                surprise = rewards[episode, later] + 0.9 * after - values[episode, later]
                wanted += 0.72 ** (later - step) * surprise
            assert_close(found[episode, step], torch.as_tensor(wanted, dtype=torch.float64))


def test_waiting_for_the_end_is_reward_less_value():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.2, 0.5, 0.6]])
    found = generalized_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), decay=1.0)
    assert_close(found, 1 - values)


def test_at_the_old_policy_the_surrogate_has_the_gradient_of_the_plain_estimator():
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    done, advantages = torch.randint(3, (6,)), torch.randn(6, dtype=torch.float64)
    log_probs = logits.log_softmax(dim=1)[torch.arange(6), done]
    clipped = torch.autograd.grad(
        clipped_surrogate(log_probs, log_probs.detach(), advantages), logits, retain_graph=True
    )[0]
    plain = torch.autograd.grad(-(log_probs * advantages).mean(), logits)[0]
    assert_close(clipped, plain)


def test_beyond_the_clip_a_good_decision_is_not_pushed_further():
    old = torch.zeros(4)
    new = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5])).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = clipped_surrogate(new, old, advantages, clip=0.2)
    assert_close(loss, -torch.tensor([1.2, -1.5, 0.5, -0.8]).mean())
    (gradient,) = torch.autograd.grad(loss, new)
    assert (gradient != 0).tolist() == [False, True, True, False]


def test_the_divergence_of_many_samples_is_that_of_the_distributions():
    policy = torch.tensor([0.6, 0.3, 0.1]).log()
    reference = torch.tensor([0.3, 0.3, 0.4]).log()
    drawn = torch.multinomial(
        policy.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float(divergence(policy[drawn], reference[drawn])) == pytest.approx(exact, rel=0.02)
    assert float(divergence(policy, policy)) == 0


def test_a_preference_is_a_logistic_loss_of_the_gain_over_the_reference():
    chosen = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.5, -0.5], dtype=torch.float64)
    reference = torch.tensor([-1.2, -1.0], dtype=torch.float64)
    other = torch.tensor([-1.1, -2.0], dtype=torch.float64)
    loss = direct_preference(chosen, rejected, reference, other, beta=0.5)
    gains = [0.5 * (0.5 + 0.1), 0.5 * (-1.5 - 1.0)]
    wanted = sum(math.log1p(math.exp(-gain)) for gain in gains) / 2
    assert loss.item() == pytest.approx(wanted)
    (gradient,) = torch.autograd.grad(loss, chosen)
    assert (gradient < 0).all()
    assert_close(
        direct_preference(reference, other, reference, other, beta=3.0),
        torch.tensor(math.log(2), dtype=torch.float64),
    )


def test_what_does_not_fit_is_refused():
    ones = torch.ones(3)
    with pytest.raises(InputError, match="number of its group"):
        group_advantages(ones, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"must be \(episodes, steps\)"):
        generalized_advantages(ones, ones, ones.bool())
    with pytest.raises(InputError, match="one shape"):
        clipped_surrogate(ones, ones, torch.ones(2))
    with pytest.raises(InputError, match="clip must be above 0"):
        clipped_surrogate(ones, ones, ones, clip=0)
    with pytest.raises(InputError, match="one shape"):
        divergence(ones, torch.ones(2))
    with pytest.raises(InputError, match="one shape"):
        direct_preference(ones, ones, ones, torch.ones(2))
    with pytest.raises(InputError, match="beta must be above 0"):
        direct_preference(ones, ones, ones, ones, beta=0)
