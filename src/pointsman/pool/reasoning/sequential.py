"""Route, think, route again, answer: a policy over rounds, learned from rewards alone.

Zhang et al., "Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement
Learning" (2025, arXiv 2506.09033). In every turn the policy either asks one model about what is
open or answers; the reward at the end is that of `rewards.episode_reward`; learning is proximal
policy optimisation with generalised advantages and a learned critic.

Where we depart from the paper: the policy is a small network on features of the state and not a
language model, so that a thought is the step in which the environment names what is open (see
`pool.reasoning.simulated`); a bonus on entropy takes the place of the divergence from a pretrained
policy; and the discount is 1.

Legend: B episodes, S decisions of an episode, F features of a state, A actions.
"""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.learn.policy_gradient import clipped_surrogate, generalized_advantages
from pointsman.pool.reasoning.rewards import Cheapness, episode_reward
from pointsman.pool.reasoning.simulated import Episodes, SimulatedPool


class _Played(NamedTuple):
    """What happened in a batch: states (B, S, F), and (B, S) each of the rest."""

    states: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    alive: Tensor


class SequentialRouter:
    """Asks models in turn until it answers.

    Args:
        weight: of the cost in the reward of a right answer, in [0, 1].
        hidden: units of the policy and of the critic.
        updates: batches of episodes.
        batch: episodes of each.
        epochs: steps of Adam on each batch.
        rate: of learning, falling to a tenth.
        entropy: bonus on undecided choices.
        clip: of the surrogate loss.
        decay: of the generalised advantages.
        seed: of weights and draws.

    Attributes:
        policy_: states to logits of actions.
        critic_: states to expected rewards.
        rewards_: mean reward of each batch.
    """

    def __init__(
        self,
        *,
        weight: float = 0.0,
        hidden: int = 32,
        updates: int = 200,
        batch: int = 256,
        epochs: int = 4,
        rate: float = 0.01,
        entropy: float = 0.01,
        clip: float = 0.2,
        decay: float = 0.95,
        seed: int = 0,
    ) -> None:
        self.weight = weight
        self.hidden = hidden
        self.updates = updates
        self.batch = batch
        self.epochs = epochs
        self.rate = rate
        self.entropy = entropy
        self.clip = clip
        self.decay = decay
        self.seed = seed

    def fit(self, pool: SimulatedPool) -> Self:
        """Learn on questions drawn from a pool.

        Raises:
            InputError: a weight that is no share.
        """
        if not 0 <= self.weight <= 1:
            raise InputError(f"the weight of the cost is a share in [0, 1], got {self.weight}")
        rng = np.random.default_rng(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.policy_ = _network(pool.width, self.hidden, pool.actions)
            self.critic_ = _network(pool.width, self.hidden, 1)
        self._sizes = pool.width, pool.actions
        weights = [*self.policy_.parameters(), *self.critic_.parameters()]
        optimiser = torch.optim.Adam(weights, self.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, self.updates)
        cheapness, self.rewards_ = Cheapness(), []
        for _ in range(self.updates):
            episodes = pool.start(pool.questions(self.batch, rng), rng)
            played = self._play(episodes, rng, greedy=False)
            reward = episode_reward(
                episodes.breach, episodes.right, cheapness(episodes.cost), weight=self.weight
            )
            self.rewards_.append(float(reward.mean()))
            advantages = self._advantages(played, torch.as_tensor(reward))
            for _ in range(self.epochs):
                optimiser.zero_grad()
                self._loss(played, advantages).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            schedule.step()
        return self

    def act(
        self,
        pool: SimulatedPool,
        questions: npt.NDArray[np.int64],
        *,
        seed: int = 0,
        greedy: bool = True,
    ) -> Episodes:
        """Play questions to the end.

        Args:
            pool: whose models and vectors are those that it learned with.
            questions: (B, P) rows of the pool's log.
            seed: of what is drawn: which wrong replies are noticed, and the actions if not greedy.
            greedy: take the likeliest action.

        Raises:
            InputError: a pool with other models or vectors.
        """
        sizes = self._sizes
        if sizes != (pool.width, pool.actions):
            raise InputError(
                f"the policy takes {sizes[0]} features and {sizes[1]} actions, the pool has "
                f"{pool.width} and {pool.actions}: fit on a pool of the same models and vectors"
            )
        rng = np.random.default_rng(seed)
        episodes = pool.start(questions, rng)
        self._play(episodes, rng, greedy=greedy)
        return episodes

    @torch.no_grad()
    def _play(self, episodes: Episodes, rng: np.random.Generator, *, greedy: bool) -> _Played:
        turns = []
        while episodes.alive.any():
            state = torch.as_tensor(episodes.observe())
            log_probs = self.policy_(state).log_softmax(dim=1)
            scores = log_probs.numpy()
            if not greedy:  # the largest of scores plus Gumbel noise is a draw
                scores = scores + rng.gumbel(size=scores.shape)
            action = torch.as_tensor(scores.argmax(axis=1))
            alive = torch.as_tensor(episodes.alive.copy())
            taken = log_probs.gather(1, action[:, None]).squeeze(1)
            turns.append((state, action, taken, self.critic_(state).squeeze(1), alive))
            episodes.take(action.numpy())
        return _Played(*(torch.stack(column, dim=1) for column in zip(*turns, strict=True)))

    def _advantages(self, played: _Played, reward: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) advantages of unit scale, and (n,) what the critic should have said."""
        last = played.alive.sum(dim=1) - 1
        rewards = torch.zeros_like(played.values)
        rewards[torch.arange(len(reward)), last] = reward
        found = generalized_advantages(rewards, played.values, played.alive, decay=self.decay)
        returns = (found + played.values)[played.alive]
        advantages = found[played.alive]
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8), returns

    def _loss(self, played: _Played, advantages: tuple[Tensor, Tensor]) -> Tensor:
        advantage, returns = advantages
        states, actions = played.states[played.alive], played.actions[played.alive]
        log_probs = self.policy_(states).log_softmax(dim=1)
        taken = log_probs.gather(1, actions[:, None]).squeeze(1)
        surrogate = clipped_surrogate(
            taken, played.log_probs[played.alive], advantage, clip=self.clip
        )
        surprise: Tensor = (self.critic_(states).squeeze(1) - returns).square().mean()
        undecided: Tensor = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        return surrogate + 0.5 * surprise - self.entropy * undecided


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    return nn.Sequential(*layers).double()
