"""Sampling of paths and of data by the size of their gradients.

Lu et al. 2023, "PA&DA: Jointly sampling path and data for consistent NAS", arXiv 2302.14772. The
variance of a sampled gradient is least where the probability of a sample is proportional to the
norm of its gradient. Both distributions are mixed with a uniform one, q = tau p + (1 - tau) / n,
and tau grows from 0 over the training.

Where we depart: the paper's code does not divide by the sampling probability, so what it follows is
no longer the gradient of the mean loss. `reweight=True` divides, and keeps the mean; the default is
the paper's.

Legend: N inputs of a batch, O options of a choice.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial, elastic_modules
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.space import Space
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.batches import Batch, RandomBatches
from pointsman.supernet.training.paths import Path

Vector = np.ndarray[Any, np.dtype[np.float64]]


def mixed_with_uniform(amounts: Vector, tau: float) -> Vector:
    """Probabilities tau * amounts / sum + (1 - tau) / n; uniform where all amounts are 0."""
    uniform = np.full(len(amounts), 1 / len(amounts))
    total = amounts.sum()
    return uniform if total <= 0 else tau * amounts / total + (1 - tau) * uniform


class ImportancePaths:
    """One path an update, each option at a rate that grows with the gradient norm of its weights.

    The norm of an option is that of the gradients of its matrices and kernels (not of biases and
    scales) in an update that trained it: a running mean with halves, as in the paper's code.

    Args:
        space: of the supernet.
        shared: one distribution over options for all choices, as in the paper; the choices must
            have the same options then. False: one for each choice.
        period: updates between two revisions of the distributions; the paper's is an epoch.
        most: tau at the end. At 1, the paper's, an option without weights ends at probability 0.
        reweight: divide each path's loss by O q, so that the expected gradient is that of uniform
            paths.
        seed: of the draws.

    Raises:
        InputError: `shared` with choices of different options, or numbers out of range.
    """

    def __init__(
        self,
        space: Space,
        *,
        shared: bool = False,
        period: int = 10,
        most: float = 1.0,
        reweight: bool = False,
        seed: int = 0,
    ) -> None:
        if shared and len({choice.options for choice in space.choices}) > 1:
            raise InputError(
                "one distribution serves choices of the same options, these have "
                f"{[list(choice.options) for choice in space.choices]}: take shared=False"
            )
        if period < 1 or not 0 <= most <= 1:
            raise InputError(f"period is at least 1 and most in [0, 1], got {period} and {most}")
        self.space, self.shared, self.period, self.most = space, shared, period, most
        self.reweight = reweight
        self.rng = np.random.default_rng(seed)
        self.probabilities = [np.full(len(c.options), 1 / len(c.options)) for c in space.choices]
        self._norms = [np.zeros(len(choice.options)) for choice in space.choices]
        self._updates = 0

    def draw(self, done: float) -> Sequence[Path]:
        """One path."""
        if self._updates and self._updates % self.period == 0:
            self._revise(done * self.most)
        self._updates += 1
        taken = [int(self.rng.choice(len(p), p=p)) for p in self.probabilities]
        genotype = self.space.canonical(taken)
        if not self.reweight:
            return [Path(genotype)]
        pairs = zip(self.probabilities, genotype, self.space.active(genotype), strict=True)
        return [Path(genotype, float(np.prod([1 / (len(p) * p[at]) for p, at, on in pairs if on])))]

    def _revise(self, tau: float) -> None:
        norms = [np.mean(self._norms, axis=0)] * len(self._norms) if self.shared else self._norms
        self.probabilities = [mixed_with_uniform(each, tau) for each in norms]

    def learn(self, supernet: Supernet, paths: Sequence[Path], losses: Sequence[float]) -> None:
        """Take account of the gradient norms of the options that were trained."""
        for place, dial in enumerate(supernet.dials):
            norm, known = gradient_norm(supernet, dial), self._norms[place][dial.index]
            self._norms[place][dial.index] = norm if known == 0 else (known + norm) / 2


def gradient_norm(supernet: Supernet, dial: Dial) -> float:
    """Of the matrices and kernels that the option in force of a choice uses; 0 where it has none.

    Those are the operation in force of a `OneOf`, and all of any other elastic module.
    """
    squares = 0.0
    for module in elastic_modules(supernet.body):
        if not any(own is dial for own in module.dials()):
            continue
        used: nn.Module = module.operations[dial.index] if isinstance(module, OneOf) else module
        for weight in used.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                squares += float(weight.grad.square().sum())
    return math.sqrt(squares)


class ImportanceBatches:
    """Examples drawn at a rate that grows with the gradient at their logits.

    The amount of an example is ||softmax(logits) - one-hot label||, averaged over its draws of an
    epoch; one that was not drawn in it keeps what is known of it. For classifiers.

    Args:
        examples: uniform batches, which say what is drawn from, how many at a time, the seed and
            the noise.
        most: tau at the end.
        reweight: divide each example's loss by (number of examples) x q.
    """

    def __init__(
        self, examples: RandomBatches, *, most: float = 1.0, reweight: bool = False
    ) -> None:
        self.examples, self.most, self.reweight = examples, most, reweight
        count = len(examples.x)
        self.probabilities = torch.full((count,), 1 / count, dtype=torch.float64)
        self._amounts = torch.ones(count, dtype=torch.float64)
        self._sums, self._draws = torch.zeros_like(self._amounts), torch.zeros_like(self._amounts)
        self._period = max(1, count // examples.size)
        self._updates = 0

    def draw(self, done: float) -> Batch:
        """N examples, with replacement."""
        if self._updates and self._updates % self._period == 0:
            self._revise(done * self.most)
        self._updates += 1
        rows_N = torch.multinomial(
            self.probabilities, self.examples.size, True, generator=self.examples.generator
        )
        weight_N = None
        if self.reweight:
            chance_N = self.probabilities[rows_N] * len(self.probabilities)
            weight_N = chance_N.reciprocal().float().to(self.examples.x.device)
        return self.examples.take(rows_N, weight_N)

    def _revise(self, tau: float) -> None:
        drawn = self._draws > 0
        self._amounts[drawn] = self._sums[drawn] / self._draws[drawn]
        self._sums.zero_()
        self._draws.zero_()
        mixed = mixed_with_uniform(self._amounts.numpy(), tau)
        self.probabilities = torch.as_tensor(mixed)

    def learn(self, batch: Batch, outputs: Tensor) -> None:
        """Take account of (N, classes) logits."""
        assert batch.rows is not None
        right = functional.one_hot(batch.y, outputs.shape[-1])
        norm_N = (outputs.softmax(dim=-1) - right).norm(dim=-1).double().cpu()
        self._sums.index_add_(0, batch.rows, norm_N)
        self._draws.index_add_(0, batch.rows, torch.ones_like(norm_N))
