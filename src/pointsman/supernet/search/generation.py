"""Genotypes sampled from a learned distribution, which a predictor can be made to tilt.

DiffusionNAG (An et al. 2023, arXiv 2305.16943): a genotype is the one-hot vector of its options, to
which noise of growing size s is added; a network learns the score of the noisy vectors, another one
the quality of a genotype from its *noisy* vector; generation follows

    score(x, s) + guidance * gradient of quality(x, s)

from pure noise to none, a Langevin step and a step of the reverse equation at each size of noise.
A vector whose options are clear, exactly one above 1/2 in each choice, is a genotype; others are
dropped.

Where we depart: the network gives probabilities of the options, whose difference from the noisy
vector is the score (as a denoiser does: Vincent 2011, Neural Computation 23(7)), beside the term
that is exact for options drawn independently and uniformly, so it only learns what the genotypes
have in common. It is a perceptron and not a transformer over a graph, the noise has 100 sizes and
not 1,000, and there is no embedding of a data set.

Legend: N genotypes, F features (the options of all choices, one after another), C choices.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.supernet.space import Genotype, Space

SMALLEST, LARGEST, SIZES = 0.1, 5.0, 100  # of the noise
SIGNAL_TO_NOISE = 0.16  # of a Langevin step
HIDDEN, UPDATES, BATCH, RATE = 128, 600, 128, 2e-3
CLEAR = 0.5

# noisy vectors, sizes of their noise, rows of the data -> scalar
_Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class GenotypeDiffusion:
    """A distribution over the genotypes of a space, and a guide through it.

    Args:
        space: without choices that depend on others.
        updates: of each of the two networks.

    Attributes:
        denoiser_, guide_: the networks.

    Raises:
        InputError: a choice of the space depends on another.
    """

    def __init__(self, space: Space, *, updates: int = UPDATES) -> None:
        if any(choice.when is not None for choice in space.choices):
            raise InputError(
                "sampling by diffusion is for spaces in which every choice always matters: "
                "leave `when` out, or take another engine"
            )
        self.space, self.updates = space, updates
        self.parts = [len(choice.options) for choice in space.choices]

    def fit(self, genotypes: Sequence[Genotype], *, seed: int = 0) -> Self:
        """Learn how genotypes are distributed; they need not have been evaluated.

        Raises:
            InputError: no genotype.
        """
        x_NF = self._vectors(genotypes)

        def loss(noisy: Tensor, size: Tensor, rows: Tensor) -> Tensor:
            log_chances = self._log_chances(noisy, size)
            return -(x_NF[rows] * log_chances).sum(1).mean()

        self.denoiser_ = _network(x_NF.shape[1], x_NF.shape[1], seed)
        nn.init.zeros_(self.denoiser_[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.denoiser_[-1].bias)  # type: ignore[arg-type]
        self._train(self.denoiser_, x_NF, loss, seed)
        return self

    def fit_guide(
        self, genotypes: Sequence[Genotype], quality: Sequence[float], *, seed: int = 0
    ) -> Self:
        """Learn to tell the quality, in standard deviations, from noisy vectors.

        Raises:
            InputError: no genotype, or other than one number each.
        """
        x_NF = self._vectors(genotypes)
        y_N = torch.tensor(quality, dtype=torch.float32)
        if y_N.shape != (len(x_NF),) or not y_N.isfinite().all():
            raise InputError(
                f"a guide learns from one number for each of {len(x_NF)} genotypes, got "
                f"{len(y_N)}, or not all numbers: leave failures out"
            )
        y_N = (y_N - y_N.mean()) / y_N.std(correction=0).clamp(min=1e-9)
        self.guide_ = _network(x_NF.shape[1], 1, seed)

        def loss(noisy: Tensor, size: Tensor, rows: Tensor) -> Tensor:
            return functional.mse_loss(_seen(self.guide_, noisy, size)[:, 0], y_N[rows])

        self._train(self.guide_, x_NF, loss, seed)
        return self

    def sample(self, count: int, *, seed: int = 0, guidance: float = 0.0) -> Tensor:
        """(count, F) vectors without noise; see `genotypes`.

        Args:
            count: how many.
            seed: of the noise.
            guidance: weight of the quality's gradient; 0: as the genotypes were distributed.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.tensor(np.geomspace(LARGEST, SMALLEST, SIZES), dtype=torch.float32)

        def noise() -> Tensor:
            return torch.randn(count, sum(self.parts), generator=generator)

        x = sizes[0] * noise()
        for size, smaller in pairwise([*sizes, torch.tensor(0.0)]):
            drift, fresh = self._drift(x, size, guidance), noise()
            ratio = fresh.norm(dim=1).mean() / drift.norm(dim=1).mean().clamp(min=1e-9)
            step = 2 * (SIGNAL_TO_NOISE * ratio) ** 2
            x = x + step * drift + (2 * step).sqrt() * fresh
            change = size**2 - smaller**2
            x = x + change * self._drift(x, size, guidance)
            if smaller > 0:
                x = x + change.sqrt() * noise()
        with torch.no_grad():
            return self._log_chances(x, sizes[-1:].expand(count)).exp()

    def genotypes(self, vectors: Tensor) -> list[Genotype | None]:
        """What each vector stands for; None where some choice is not clear."""
        found: list[Genotype | None] = []
        clear = [part > CLEAR for part in torch.split(vectors, self.parts, dim=1)]
        for row in range(len(vectors)):
            one = all(int(part[row].sum()) == 1 for part in clear)
            found.append(tuple(int(part[row].int().argmax()) for part in clear) if one else None)
        return found

    def _vectors(self, genotypes: Sequence[Genotype]) -> Tensor:
        if not genotypes:
            raise InputError("a distribution is learned from at least one genotype, got none")
        return torch.tensor(self.space.features(genotypes), dtype=torch.float32)

    def _log_chances(self, noisy: Tensor, size: Tensor) -> Tensor:
        """(N, F) logarithm of the chance of each option, given the noisy vector."""
        logits = noisy / size[:, None] ** 2 + _seen(self.denoiser_, noisy, size)
        return torch.cat([p.log_softmax(1) for p in torch.split(logits, self.parts, dim=1)], 1)

    def _drift(self, x: Tensor, size: Tensor, guidance: float) -> Tensor:
        sizes = size.expand(len(x))
        with torch.no_grad():
            score = (self._log_chances(x, sizes).exp() - x) / size**2
        if guidance == 0:
            return score
        at = x.detach().requires_grad_()
        quality = _seen(self.guide_, at, sizes).sum()
        return score + guidance * torch.autograd.grad(quality, at)[0]

    def _train(self, network: nn.Module, x_NF: Tensor, loss: _Loss, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.updates)
        for _ in range(self.updates):
            rows = torch.randint(len(x_NF), (BATCH,), generator=generator)
            share = torch.rand(BATCH, generator=generator)
            size = SMALLEST * (LARGEST / SMALLEST) ** share
            noise = torch.randn(BATCH, x_NF.shape[1], generator=generator)
            optimiser.zero_grad()
            missed = loss(x_NF[rows] + size[:, None] * noise, size, rows)
            missed.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        network.eval()


def _seen(network: nn.Module, noisy: Tensor, size: Tensor) -> Tensor:
    """What a network gives for noisy vectors, scaled to unit size, and the size of their noise."""
    scaled = noisy / (size[:, None] ** 2 + 0.25).sqrt()
    out: Tensor = network(torch.cat([scaled, size[:, None].log()], 1))
    return out


def _network(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs + 1, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, outputs),
        )
