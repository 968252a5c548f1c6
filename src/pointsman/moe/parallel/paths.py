"""Paths through shared modules, trained apart and averaged now and then.

A network has levels, each with alternative modules; a path takes one of each level. Documents are
put into shards, one for each path, and a path is trained on its shard alone for many steps. Then
every module moves by the mean of what its paths changed, and all go on from there.

Douillard et al. 2024, "DiPaCo: distributed path composition" (arXiv 2403.10616). Workers are run
one after the other in one process here: what is sent between them, failures and overlapping shards
are not here.

Legend: N documents, D features of a document, P paths.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pointsman.errors import InputError

Path = tuple[int, ...]
Loss = Callable[[nn.Module], Tensor]  # of a path's network, on a fresh batch of its shard
Features = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


class Paths(nn.Module):
    """Levels of alternative modules; a path runs one of each level in turn.

    Args:
        levels: for each level, its modules: the output of any fits the input of any of the next.

    Attributes:
        counts: modules of each level.

    Raises:
        InputError: no level, or an empty one.
    """

    def __init__(self, levels: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        if not levels or not all(levels):
            raise InputError(
                "paths need at least one level, and each level a module, got levels of "
                f"{[len(level) for level in levels]}"
            )
        self.levels = nn.ModuleList(nn.ModuleList(level) for level in levels)
        self.counts = tuple(len(level) for level in levels)

    def paths(self) -> list[Path]:
        """All of them, the last level varying quickest."""
        return list(product(*(range(count) for count in self.counts)))

    def modules_of(self, path: Path) -> list[nn.Module]:
        """The module of each level.

        Raises:
            InputError: not one module for each level.
        """
        if len(path) != len(self.counts) or not all(
            0 <= at < count for at, count in zip(path, self.counts, strict=True)
        ):
            raise InputError(f"a path takes one of {self.counts} modules a level, got {path}")
        return [self._module(level, at) for level, at in enumerate(path)]

    def forward(self, x: Tensor, path: Path) -> Tensor:
        """x through the modules of a path."""
        for module in self.modules_of(path):
            x = module(x)
        return x

    def extract(self, path: Path) -> nn.Sequential:
        """A network of its own for a path: what a worker holds, and what serves a document."""
        return nn.Sequential(*(deepcopy(module) for module in self.modules_of(path)))

    def _module(self, level: int, at: int) -> nn.Module:
        modules = self.levels[level]
        assert isinstance(modules, nn.ModuleList)
        return modules[at]


class PathTraining:
    """Loosely synchronised training: many inner steps of each path, then one outer step a module.

    A worker trains a copy of its path with AdamW. A module's outer gradient is the mean over the
    paths through it of (old - new), weighted by the sizes of their shards, times the square root of
    their number; Nesterov's method moves the module by it. Both optimisers keep their state from
    round to round. With one path this is DiLoCo with one worker (Douillard et al. 2023, arXiv
    2311.08105).

    Args:
        model: changed in place.
        inner_rate: of AdamW.
        decay: of weights, in AdamW.
        outer_rate: of Nesterov's method.
        momentum: of Nesterov's method.

    The defaults of the outer step are DiLoCo's.
    """

    def __init__(
        self,
        model: Paths,
        *,
        inner_rate: float = 1e-3,
        decay: float = 0.0,
        outer_rate: float = 0.7,
        momentum: float = 0.9,
    ) -> None:
        self.model, self.inner_rate, self.decay = model, inner_rate, decay
        self.outer = torch.optim.SGD(
            model.parameters(), outer_rate, momentum=momentum, nesterov=momentum > 0
        )
        self.workers: dict[Path, tuple[nn.Sequential, torch.optim.AdamW]] = {}

    def round(self, shards: Mapping[Path, tuple[float, Loss]], inner_steps: int) -> None:
        """Train each path on its shard, then move every module that a path ran through.

        Args:
            shards: of each path to train, its size and its loss on a fresh batch.
            inner_steps: of each path.

        Raises:
            InputError: a size that is not above 0, or a path that the model has not.
        """
        for path, (size, _) in shards.items():
            self.model.modules_of(path)
            if not size > 0:
                raise InputError(f"a shard's size is above 0, got {size} for path {path}")
        total: dict[nn.Parameter, Tensor] = {}
        weight: dict[nn.Parameter, float] = {}
        count: dict[nn.Parameter, int] = {}
        for path, (size, loss) in shards.items():
            for old, new in self._trained(path, loss, inner_steps):
                total[old] = total.get(old, torch.zeros_like(old)) + size * (old.detach() - new)
                weight[old] = weight.get(old, 0.0) + size
                count[old] = count.get(old, 0) + 1
        for parameter in self.model.parameters():
            parameter.grad = None  # no path came through: it stays, and so does its momentum
            if parameter in total:
                parameter.grad = total[parameter] * (count[parameter] ** 0.5 / weight[parameter])
        self.outer.step()
        self.outer.zero_grad()

    def _trained(self, path: Path, loss: Loss, steps: int) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The path's shared weights, each with what its worker made of it."""
        shared = [w for module in self.model.modules_of(path) for w in module.parameters()]
        if path not in self.workers:
            own = self.model.extract(path)
            optimiser = torch.optim.AdamW(
                own.parameters(), self.inner_rate, weight_decay=self.decay
            )
            self.workers[path] = own, optimiser
        own, optimiser = self.workers[path]
        with torch.no_grad():
            for mine, old in zip(own.parameters(), shared, strict=True):
                mine.copy_(old)
        own.train()
        for _ in range(steps):
            optimiser.zero_grad()
            loss(own).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        for old, mine in zip(shared, own.parameters(), strict=True):
            yield old, mine.detach()


def nearest_shard(features_ND: Features, centres_PD: Features) -> Labels:
    """(N,) the nearest centre of each document: where it is routed, in training and in use.

    Args:
        features_ND: of a prefix that is left out of the loss.
        centres_PD: such as from `shard_centres`.
    """
    distance_NP = ((features_ND[:, None] - centres_PD) ** 2).sum(axis=2)
    found: Labels = distance_NP.argmin(axis=1)
    return found


def shard_centres(features_ND: Features, shards: int, *, seed: int) -> Features:
    """(P, D) centres by k-means: routing by what documents look like, before any training.

    Args:
        features_ND: of the training documents.
        shards: P.
        seed: of the starting points.

    Raises:
        InputError: fewer documents than shards.
    """
    from sklearn.cluster import KMeans

    if not 1 <= shards <= len(features_ND):
        raise InputError(f"{len(features_ND)} documents make 1 to as many shards, got {shards}")
    centres: Features = (
        KMeans(shards, n_init=10, random_state=seed).fit(features_ND).cluster_centers_
    )
    return centres


def reshard(
    features_ND: Features, losses_NP: Features, other_MD: Features, *, seed: int = 0
) -> Labels:
    """(M,) the path of other documents, from which path suits these best: logistic regression.

    Args:
        features_ND: of held-out documents.
        losses_NP: of every path on each of them.
        other_MD: features of the documents to put into shards.
        seed: of the solver.
    """
    from sklearn.linear_model import LogisticRegression

    best_N = losses_NP.argmin(axis=1)
    if len(np.unique(best_N)) == 1:
        return np.full(len(other_MD), best_N[0])
    model = LogisticRegression(max_iter=1000, random_state=seed).fit(features_ND, best_N)
    found: Labels = model.predict(other_MD)
    return found
