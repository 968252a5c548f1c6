"""Several short prefixes of one frozen policy, each trained on its own part of the problems.

Li et al., "EconProver: Towards More Economical Test-Time Scaling for Automated Theorem Proving"
(2025, arXiv 2509.12603): problems are split by how hard they are for the prover, one trainable
prefix a part learns by reinforcement from the proof checker, and the attempts at a new problem are
spread over the prefixes, so that they differ.

Where we depart from the paper, whose prefixes are only known from its abstract: a prefix is a
vector that a frozen network takes beside the problem; and the advantage of an attempt is its reward
less that of the other attempts at the same problem, without a critic.

Legend: N problems, D features, P width of a prefix, A actions (ways to begin a proof).
"""

from collections.abc import Callable
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.learn.policy_gradient import clipped_surrogate, group_advantages

# x (n, D) and prefixes (n, P) to logits (n, A)
Base = Callable[[Tensor, Tensor], Tensor]
# problems (n,) and actions (n,) to rewards (n,) in [0, 1]
Check = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]]


class DiversePrefixes:
    """K prefixes of a frozen policy; attempts take turns among them.

    Args:
        base: the frozen policy; a prefix of zeros is the policy before any training.
        width: P.
        parts: K.
        split: "difficulty": parts of equal size by how often the base policy fails; "random": a
            part is any problems, as a control.
        probes: attempts a problem that tell how hard it is.
        rounds: of sampling, then learning.
        samples: attempts a problem and round, at least 2.
        epochs: updates on each round's attempts.
        rate: of Adam.
        clip: of the surrogate loss.
        seed: of every draw.

    Attributes:
        prefixes_: (K, P).
        part_: (N,) of each training problem.
        failed_: (N,) share of the probes that failed.
    """

    def __init__(
        self,
        base: Base,
        width: int,
        *,
        parts: int = 4,
        split: str = "difficulty",
        probes: int = 16,
        rounds: int = 60,
        samples: int = 8,
        epochs: int = 2,
        rate: float = 0.1,
        clip: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.base = base
        self.width = width
        self.parts = parts
        self.split = split
        self.probes = probes
        self.rounds = rounds
        self.samples = samples
        self.epochs = epochs
        self.rate = rate
        self.clip = clip
        self.seed = seed

    def fit(self, x: Tensor, check: Check) -> Self:
        """Train every prefix on its part.

        Args:
            x: (N, D) features of the problems.
            check: the proof checker; problems are numbered as in `x`.

        Raises:
            InputError: fewer problems than parts, or keywords out of range.
        """
        if not 1 <= self.parts <= len(x) or self.samples < 2 or self.width < 1:
            raise InputError(
                "there are as many problems as parts, two samples and one prefix number at least, "
                f"got {len(x)} problems, parts {self.parts}, samples {self.samples}, "
                f"width {self.width}"
            )
        if self.split not in ("difficulty", "random"):
            raise InputError(f'split is "difficulty" or "random", got {self.split!r}')
        generator = torch.Generator().manual_seed(self.seed)
        self.failed_ = self._probe(x, check, generator)
        self.part_ = self._parts(len(x), generator)
        own = torch.as_tensor(self.part_)
        prefixes = torch.zeros(self.parts, self.width, dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([prefixes], self.rate)
        problem = torch.arange(len(x)).repeat_interleave(self.samples)
        inputs, turn = x[problem], own[problem]
        for _ in range(self.rounds):
            actions, old = self._sample(inputs, prefixes[turn], generator)
            rewards = torch.as_tensor(check(problem.numpy(), actions.numpy())).to(x.dtype)
            advantages = group_advantages(rewards, problem)
            for _ in range(self.epochs):
                logits = self.base(inputs, prefixes[turn])
                new = logits.log_softmax(dim=1).gather(1, actions[:, None]).squeeze(1)
                loss = clipped_surrogate(new, old, advantages, clip=self.clip)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        self.prefixes_ = prefixes.detach()
        return self

    def attempt(self, x: Tensor, passes: int, seed: int = 0) -> npt.NDArray[np.int64]:
        """(N, passes) actions; attempt j takes prefix j modulo K.

        Args:
            x: (N, D) features of new problems.
            passes: attempts at each.
            seed: of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        columns = [
            self._sample(x, self.prefixes_[turn % self.parts].expand(len(x), -1), generator)[0]
            for turn in range(passes)
        ]
        found: npt.NDArray[np.int64] = torch.stack(columns, dim=1).numpy()
        return found

    def _probe(
        self, x: Tensor, check: Check, generator: torch.Generator
    ) -> npt.NDArray[np.float64]:
        """(N,) share of the base policy's attempts that failed."""
        nothing = torch.zeros(len(x), self.width, dtype=x.dtype)
        failed = np.zeros(len(x))
        for _ in range(self.probes):
            actions, _ = self._sample(x, nothing, generator)
            failed += 1 - check(np.arange(len(x)), actions.numpy())
        return failed / max(self.probes, 1)

    def _parts(self, problems: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """(N,) part of each problem: equal sizes, from easy to hard or at random."""
        key = self.failed_
        if self.split == "random":
            key = torch.rand(problems, generator=generator, dtype=torch.float64).numpy()
        part = np.empty(problems, dtype=np.int64)
        for at, rows in enumerate(np.array_split(np.argsort(key, kind="stable"), self.parts)):
            part[rows] = at
        return part

    @torch.no_grad()
    def _sample(
        self, x: Tensor, prefix: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(n,) actions, and their log-probabilities."""
        log_probs = self.base(x, prefix).log_softmax(dim=1)
        actions = torch.multinomial(log_probs.exp(), 1, generator=generator)
        return actions.squeeze(1), log_probs.gather(1, actions).squeeze(1)


def coverage(attempts: npt.NDArray[np.int64]) -> float:
    """Mean share of different beginnings among the attempts at one problem: 1, no two are alike.

    The paper's diagnostic of diversity; it follows how many problems are solved at all.

    Args:
        attempts: (N, passes).
    """
    ordered = np.sort(attempts, axis=1)
    different = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
    return float((different / attempts.shape[1]).mean())
