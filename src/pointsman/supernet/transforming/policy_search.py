"""Search by a policy network that is trained with REINFORCE on the rewards of what it drew.

Williams 1992, Machine Learning 8. In each update B genotypes are drawn, those that are new are
evaluated, and the policy follows (reward - baseline) * gradient of log-probability, with the moving
average of past rewards as baseline. What was drawn before has its reward from memory.

Legend: B draws of an update, C choices, O options of the choice with most of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Genotype, Space


@dataclass(frozen=True, eq=False)
class Draws:
    """What a policy drew.

    Args:
        genotypes: B, canonical.
        log_probs: (B,) of the choices that matter, with gradient.
        entropies: (B,) sum over the same choices, with gradient.
    """

    genotypes: Sequence[Genotype]
    log_probs: Tensor
    entropies: Tensor


class Policy(Protocol):
    """A network that draws genotypes."""

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """So many genotypes, independently."""
        ...

    def parameters(self) -> Any:
        """What is trained."""
        ...


# of an evaluation and of the number of the update, from 0
Reward = Callable[[Evaluation, int], float]
Drawn = Callable[[Sequence[Genotype], Sequence[float]], None]


def policy_search(
    problem: Problem,
    seed: int,
    *,
    policy: Callable[[Space], Policy],
    reward: Reward,
    rollouts: int = 5,
    updates: int = 100,
    rate: float = 3e-3,
    entropy: float = 0.0,
    decay: float = 0.95,
    drawn: Drawn = lambda genotypes, rewards: None,
) -> Proposals:
    """An engine, once its policy and reward are given; it ends after its updates.

    Args:
        problem: what is searched; a draw beyond the budget is rewarded as a failure and not
            proposed.
        seed: of the policy's weights and draws.
        policy: makes the network for a space.
        reward: higher is better; also of failed evaluations.
        rollouts: B.
        updates: of the policy.
        rate: of Adam.
        entropy: weight of the policy's entropy beside the reward.
        decay: of the moving average of rewards that is the baseline.
        drawn: called after each update with all draws, repeated ones too, and their rewards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = policy(problem.space)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), rate)
    seen: dict[Genotype, Evaluation] = {}
    baseline = nan
    for update in range(updates):
        draws = network.draw(rollouts, generator)
        unseen = [g for g in dict.fromkeys(draws.genotypes) if g not in seen]
        seen.update((g, _refused(problem, g)) for g in unseen if not problem.affordable(g))
        if new := [genotype for genotype in unseen if genotype not in seen]:
            seen.update((each.genotype, each) for each in (yield new))
        rewards = [reward(seen[genotype], update) for genotype in draws.genotypes]
        drawn(draws.genotypes, rewards)
        rewards_B = draws.log_probs.new_tensor(rewards)
        average = float(rewards_B.mean())
        baseline = average if update == 0 else baseline
        gain = ((rewards_B - baseline) * draws.log_probs + entropy * draws.entropies).mean()
        optimiser.zero_grad()
        (-gain).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        baseline = decay * baseline + (1 - decay) * average


def _refused(problem: Problem, genotype: Genotype) -> Evaluation:
    return Evaluation(genotype, nan, problem.cost(genotype), "beyond the budget")


class LayerwisePolicy(nn.Module):
    """A bidirectional LSTM over the choices; every choice is drawn by itself.

    N2N Learning (Ashok et al. 2017, arXiv 1709.06030) removes layers with it: one choice a layer.

    Args:
        space: drawn from.
        layers: (C, F) description of what each choice is about: kind, kernel, channels, ...; None:
            nothing but the order is known.
        hidden: units of each direction.
        depth: layers of the LSTM.
    """

    layers: Tensor

    def __init__(
        self, space: Space, layers: Tensor | None = None, *, hidden: int = 30, depth: int = 2
    ) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("layers", _described(space, layers))
        features = self.layers.shape[1]
        self.lstm = nn.LSTM(features, hidden, depth, bidirectional=True)
        self.head = nn.Linear(2 * hidden, max(_sizes(space)))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Every choice from its own softmax."""
        logits_CO = self.head(self.lstm(self.layers)[0])
        log_CO = logits_CO.masked_fill(~_there(self.space), -torch.inf).log_softmax(dim=1)
        drawn_CB = torch.multinomial(log_CO.exp(), count, replacement=True, generator=generator)
        log_BC = log_CO.gather(1, drawn_CB).T
        return _draws(self.space, drawn_CB.T, log_BC, _entropy(log_CO).expand(count, -1))


class AutoregressivePolicy(nn.Module):
    """An LSTM over the choices in turn, which is told what was drawn for the one before.

    N2N Learning (Ashok et al. 2017, arXiv 1709.06030) shrinks layers with it: one choice for every
    layer and each of its sizes.

    Args:
        space: drawn from.
        layers: (C, F), as for `LayerwisePolicy`.
        hidden: units.
        depth: layers of the LSTM.
    """

    layers: Tensor

    def __init__(
        self, space: Space, layers: Tensor | None = None, *, hidden: int = 30, depth: int = 2
    ) -> None:
        super().__init__()
        self.space = space
        self.register_buffer("layers", _described(space, layers))
        options = max(_sizes(space))
        self.lstm = nn.LSTM(self.layers.shape[1] + options, hidden, depth)
        self.head = nn.Linear(hidden, options)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Choice after choice."""
        there_CO, state = _there(self.space), None
        before_BO = self.layers.new_zeros(count, there_CO.shape[1])
        drawn, logs, entropies = [], [], []
        for layer_F, there_O in zip(self.layers, there_CO, strict=True):
            inputs = torch.cat([layer_F.expand(count, -1), before_BO], dim=1)
            out, state = self.lstm(inputs[None], state)
            log_BO = self.head(out[0]).masked_fill(~there_O, -torch.inf).log_softmax(dim=1)
            index_B1 = torch.multinomial(log_BO.exp(), 1, generator=generator)
            before_BO = torch.zeros_like(before_BO).scatter(1, index_B1, 1.0)
            drawn.append(index_B1)
            logs.append(log_BO.gather(1, index_B1))
            entropies.append(_entropy(log_BO)[:, None])
        return _draws(self.space, *(torch.cat(each, dim=1) for each in (drawn, logs, entropies)))


def _sizes(space: Space) -> list[int]:
    return [len(choice.options) for choice in space.choices]


def _there(space: Space) -> Tensor:
    """(C, O) which options a choice has."""
    sizes = torch.tensor(_sizes(space))
    return torch.arange(int(sizes.max())) < sizes[:, None]


def _described(space: Space, layers: Tensor | None) -> Tensor:
    return torch.ones(len(space.choices), 1) if layers is None else layers


def _entropy(log_NO: Tensor) -> Tensor:
    """(N,) of log-probabilities of which some are -inf."""
    return -(log_NO.exp() * log_NO.clamp(min=-1e9)).sum(dim=-1)


def _draws(space: Space, drawn_BC: Tensor, log_BC: Tensor, entropy_BC: Tensor) -> Draws:
    """Counts the choices that matter alone."""
    genotypes = [space.canonical(row) for row in drawn_BC.tolist()]
    matters_BC = torch.tensor([space.active(genotype) for genotype in genotypes])
    return Draws(genotypes, (log_BC * matters_BC).sum(dim=1), (entropy_BC * matters_BC).sum(dim=1))
