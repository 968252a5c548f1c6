"""Plans and answers learned step by step, each step with a group and a reward of its own.

Peng et al., "Learning to Route Queries Across Knowledge Bases for Step-wise Retrieval-Augmented
Reasoning" (R1-Router, 2025, arXiv 2505.22095). In Step-GRPO every turn of a teacher's way through a
question is a prompt by itself: a group of outputs is drawn there, each earns its own reward, and
advantages are normal within the group alone. Beside it stand learning from whole trajectories,
which earn one reward at their end, and plain imitation of the teacher.

Where we depart from the paper: policies are small networks on features of the state; group size,
rate and weight of the divergence are ours, as the paper's were not found.

Legend: B questions, G outputs of a group, F features of a state, A actions of a turn.
"""

import copy
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.learn.policy_gradient import clipped_surrogate, divergence, group_advantages
from pointsman.pool.reasoning.retrieval import Kind, KnowledgeBases, Questions

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Level = Literal["step", "trajectory", "imitation"]
Decisions = tuple[Kind, Array, Ints]  # kind of turn, states (n, F), actions (n,)


class StepwiseRouter:
    """Decides what to ask next and where to look, and which part of what came back is the answer.

    Args:
        level: "step": a group and a reward for every step of the teacher's way; "trajectory": the
            group is of whole ways of its own, with the final reward; "imitation": likelihood of
            the teacher's actions.
        group: G.
        batch: questions of an update.
        hidden: units of either policy.
        rate: of Adam.
        clip: of the surrogate loss.
        epochs: steps on each batch.
        pull: weight of the divergence from the policies before any training.
        seed: of weights and draws.

    Attributes:
        policies_: kind of turn to a network from states to logits.
        updates_: updates made so far.
    """

    def __init__(
        self,
        *,
        level: Level = "step",
        group: int = 8,
        batch: int = 16,
        hidden: int = 32,
        rate: float = 0.01,
        clip: float = 0.2,
        epochs: int = 2,
        pull: float = 0.001,
        seed: int = 0,
    ) -> None:
        self.level = level
        self.group = group
        self.batch = batch
        self.hidden = hidden
        self.rate = rate
        self.clip = clip
        self.epochs = epochs
        self.pull = pull
        self.seed = seed

    def fit(self, world: KnowledgeBases, updates: int) -> Self:
        """Start anew, and learn for some updates."""
        if self.level not in ("step", "trajectory", "imitation") or self.group < 2:
            raise InputError(
                'level is "step", "trajectory" or "imitation" and a group has two outputs at '
                f"least, got {self.level!r} and {self.group}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.policies_ = {
                kind: _network(world.width, self.hidden, count)
                for kind, count in world.actions.items()
            }
        self._start = {kind: _frozen(policy) for kind, policy in self.policies_.items()}
        weights = [w for policy in self.policies_.values() for w in policy.parameters()]
        self._optimiser = torch.optim.Adam(weights, self.rate)
        self._rng = np.random.default_rng(self.seed)
        self.updates_ = 0
        return self.more(world, updates)

    def more(self, world: KnowledgeBases, updates: int) -> Self:
        """Learn for some updates from where it stands."""
        for _ in range(updates):
            questions = world.questions(self.batch, self._rng)
            if self.level == "imitation":
                self._imitate(world, questions)
            else:
                self._learn(*self._decisions(world, questions))
            self.updates_ += 1
        return self

    def choose(self, kind: Kind, states: Array, alive: npt.NDArray[np.bool_]) -> Ints:
        """(B,) the likeliest actions, for `KnowledgeBases.play`."""
        with torch.no_grad():
            logits: Tensor = self.policies_[kind](torch.as_tensor(states))
        found: Ints = logits.argmax(dim=1).numpy()
        return found

    def _decisions(
        self, world: KnowledgeBases, questions: Questions
    ) -> tuple[list[Decisions], Tensor]:
        """What was decided in each turn, and the advantages of all of that in one column."""
        rows = np.arange(len(questions.wanted)).repeat(self.group)
        group = torch.as_tensor(rows)
        taken: list[Decisions] = []
        if self.level == "step":
            advantages = []
            for turn in world.gold(questions):
                states = turn.states[rows]
                actions = self._draw(turn.kind, states)
                taken.append((turn.kind, states, actions))
                # Normal within this step alone: groups of different steps are kept apart.
                rewards = torch.as_tensor(turn.rewards[rows, actions])
                advantages.append(group_advantages(rewards, group))
            return taken, torch.cat(advantages)
        going = []

        def choose(kind: Kind, states: Array, alive: npt.NDArray[np.bool_]) -> Ints:
            actions = self._draw(kind, states)
            taken.append((kind, states[alive], actions[alive]))
            going.append(torch.as_tensor(alive))
            return actions

        many = Questions(questions.wanted[rows], questions.shown[rows])
        right = torch.as_tensor(world.play(many, choose).right)
        advantage = group_advantages(right, group)
        return taken, torch.cat([advantage[alive] for alive in going])

    def _draw(self, kind: Kind, states: Array) -> Ints:
        with torch.no_grad():
            logits: Tensor = self.policies_[kind](torch.as_tensor(states))
        noise = self._rng.gumbel(size=tuple(logits.shape))
        found: Ints = (logits.numpy() + noise).argmax(axis=1)
        return found

    def _learn(self, taken: list[Decisions], advantage: Tensor) -> None:
        with torch.no_grad():
            old = self._log_probs(taken, self.policies_)
            start = self._log_probs(taken, self._start)
        for _ in range(self.epochs):
            new = self._log_probs(taken, self.policies_)
            loss = clipped_surrogate(new, old, advantage, clip=self.clip)
            self._step(loss + self.pull * divergence(new, start))

    def _imitate(self, world: KnowledgeBases, questions: Questions) -> None:
        turns = [(turn.kind, turn.states, turn.teacher) for turn in world.gold(questions)]
        for _ in range(self.epochs):
            self._step(-self._log_probs(turns, self.policies_).mean())

    def _step(self, loss: Tensor) -> None:
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _log_probs(self, taken: list[Decisions], policies: dict[Kind, nn.Sequential]) -> Tensor:
        """(n,) of all decisions in order."""
        return torch.cat(
            [
                -functional.cross_entropy(
                    policies[kind](torch.as_tensor(states)),
                    torch.as_tensor(actions),
                    reduction="none",
                )
                for kind, states, actions in taken
            ]
        )


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    layers = nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    return nn.Sequential(*layers).double()


def _frozen(policy: nn.Sequential) -> nn.Sequential:
    return copy.deepcopy(policy).requires_grad_(False)
