"""A policy that grows a tree-structured cell, edit after edit, by looking at the tree so far.

Cai et al. 2018, arXiv 1806.02639: a tree-structured LSTM encodes the cell bottom-up (child-sum, Tai
et al. 2015, arXiv 1503.00075) and then top-down; three softmax heads say how an edge branches,
whether a branch gets a node, and which operation replaces an identity.

Legend: O options of one choice, H units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointsman.supernet.search.engine import Proposals
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.space import Option, Space
from pointsman.supernet.transforming.cells import MERGES, tangent_reward
from pointsman.supernet.transforming.policy_search import Drawn, Draws, Reward, policy_search

Pair = tuple[Tensor, Tensor]  # state and memory of an LSTM, (1, H) each


class TreePolicy(nn.Module):
    """Draws the trees of a `cell_space`.

    Args:
        space: of `cell_space`.
        hidden: H, of each direction.
    """

    def __init__(self, space: Space, *, hidden: int = 32) -> None:
        super().__init__()
        self.space, self.hidden = space, hidden
        named = [choice for choice in space.choices if choice.name.endswith(".operation")]
        self.operations = named[0].options
        # of a node: no operation, which one, how it branches, whether a node follows
        features = 1 + len(self.operations) + len(MERGES) + 1
        self.gates = nn.Linear(features + hidden, 3 * hidden)
        self.forget = nn.Linear(features + hidden, hidden)
        self.down = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleDict(
            {
                "merge": nn.Linear(2 * hidden, len(MERGES)),
                "insert": nn.Linear(2 * hidden, 2),
                "operation": nn.Linear(2 * hidden, len(self.operations)),
            }
        )

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Trees, one after another."""
        drawn = [self._draw(generator) for _ in range(count)]
        genotypes, logs, entropies = zip(*drawn, strict=True)
        return Draws(genotypes, torch.stack(logs), torch.stack(entropies))

    def _draw(self, generator: torch.Generator) -> tuple[tuple[int, ...], Tensor, Tensor]:
        decided: dict[str, Option] = {}
        log, entropy = torch.zeros(()), torch.zeros(())
        for choice in self.space.choices:
            if choice.when is not None and decided.get(choice.when[0]) not in choice.when[1]:
                continue
            path, _, kind = choice.name.rpartition(".")
            log_O = self.heads[kind](self.encode(decided, path)).log_softmax(dim=0)
            at = int(torch.multinomial(log_O.exp(), 1, generator=generator))
            decided[choice.name] = choice.options[at]
            log = log + log_O[at]
            entropy = entropy - (log_O.exp() * log_O).sum()
        return self.space.encode(decided), log, entropy

    def encode(self, decided: dict[str, Option], path: str) -> Tensor:
        """(2 H,) state of one node in the tree that was decided so far, of both directions."""
        up: dict[str, Pair] = {}
        self._upward("cell", decided, up)
        parts = path.split(".")
        at = "cell"
        state = self.down(up[at][0])
        for part in parts[1:]:
            at = f"{at}.{part}"
            if at not in up:  # the node under decision, of which nothing is there yet
                up[at] = self._node(decided, at, [])
            state = self.down(up[at][0], state)
        return torch.cat([up[path][0], state[0]], dim=1)[0]

    def _upward(self, path: str, decided: dict[str, Option], up: dict[str, Pair]) -> None:
        merge = str(decided.get(f"{path}.merge", "none"))
        below = [f"{path}.{at}" for at in range(MERGES[merge])] if merge != "none" else []
        if decided.get(f"{path}.insert"):
            below.append(f"{path}.node")
        for each in below:
            self._upward(each, decided, up)
        up[path] = self._node(decided, path, [up[each] for each in below])

    def _node(self, decided: dict[str, Option], path: str, below: Sequence[Pair]) -> Pair:
        """Child-sum LSTM: (1, H) state and memory of a node from those of its children."""
        features = self._features(decided, path)
        summed = sum((state for state, _ in below), torch.zeros(1, self.hidden))
        i, o, u = self.gates(torch.cat([features, summed], dim=1)).chunk(3, dim=1)
        memory = i.sigmoid() * u.tanh()
        for state, remembered in below:
            kept = self.forget(torch.cat([features, state], dim=1)).sigmoid()
            memory = memory + kept * remembered
        return o.sigmoid() * memory.tanh(), memory

    def _features(self, decided: dict[str, Option], path: str) -> Tensor:
        """(1, F) of 0 and 1."""
        operation = decided.get(f"{path}.operation")
        merge = str(decided.get(f"{path}.merge", ""))
        row = [
            float(operation is None),
            *(float(operation == each) for each in self.operations),
            *(float(merge == each) for each in MERGES),
            float(bool(decided.get(f"{path}.insert"))),
        ]
        return torch.tensor([row])


def path_level_search(
    problem: Problem,
    seed: int,
    *,
    reward: Reward | None = None,
    rollouts: int = 10,
    updates: int = 50,
    rate: float = 6e-3,
    entropy: float = 0.01,
    drawn: Drawn = lambda genotypes, rewards: None,
) -> Proposals:
    """Grows trees with a `TreePolicy`; what was not seen yet is evaluated.

    Args:
        problem: over a `cell_space`; its quality transforms a trained network and trains briefly.
        seed: of the policy's weights and draws.
        reward: None: the tangent of the quality, as published; a failed child has 0.
        rollouts: draws an update.
        updates: of the policy; the engine ends after them.
        rate: of Adam.
        entropy: weight of the policy's entropy beside the reward.
        drawn: called after each update with all draws and their rewards.
    """
    return policy_search(
        problem,
        seed,
        policy=TreePolicy,
        reward=reward or _tangent,
        rollouts=rollouts,
        updates=updates,
        rate=rate,
        entropy=entropy,
        drawn=drawn,
    )


def _tangent(child: Evaluation, update: int) -> float:
    return 0.0 if child.failed else tangent_reward(child.quality)
