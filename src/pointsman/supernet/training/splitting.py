"""Which choice to split, and how: options whose gradients disagree get weights of their own.

Hu et al. 2022, "Generalizing few-shot NAS with gradient matching", arXiv 2203.15207. With each
option of a choice in force in turn, everything else alike, the gradient of the loss is taken on the
weights that all options share. Options whose gradients point in like directions can go on sharing;
the choice's options are cut in two groups so that the distance 1 - cosine across the cut is
largest, and the choice with the largest such cut is split.

Settled here: one cosine over all shared weights together, averaged over batches and random paths.

Legend: O options of a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import elastic_modules
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training.batches import Batches
from pointsman.supernet.training.loop import ExampleLoss, cross_entropy

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Split:
    """A choice cut in two groups of options (their indices), and the distance across the cut."""

    choice: str
    groups: tuple[tuple[int, ...], tuple[int, ...]]
    distance: float


def disagreement(
    supernet: Supernet,
    choice: str,
    batches: Batches,
    *,
    repeats: int = 20,
    loss: ExampleLoss = cross_entropy,
    seed: int = 0,
) -> Matrix:
    """(O, O) mean distance 1 - cosine between the options' gradients on shared weights.

    Shared is every weight but those of operations that only one option of the choice uses. A
    gradient of length 0 has distance 1 from all others. The supernet's weights stay as they are;
    batch statistics are those of the batch, and the running ones stay as well.

    Args:
        supernet: some way into its training.
        choice: name.
        batches: one is drawn for each repeat.
        repeats: with a random path for the other choices each.
        loss: of each example.
        seed: of the paths.

    Raises:
        InputError: no such choice.
    """
    if choice not in supernet.space.names:
        raise InputError(f"the choices are {list(supernet.space.names)}, got {choice!r}")
    place = supernet.space.names.index(choice)
    options = len(supernet.space.choices[place].options)
    shared, rng = _shared(supernet, choice), np.random.default_rng(seed)
    state = {name: each.clone() for name, each in supernet.named_buffers()}
    was, training = supernet.in_force, supernet.training
    total = np.zeros((options, options))
    supernet.train()
    for _ in range(repeats):
        path, batch = supernet.space.sample(rng), batches.draw(0.0)
        rows = []
        for option in range(options):
            supernet.use((*path[:place], option, *path[place + 1 :]))
            value = loss(supernet(batch.x), batch.y).mean()
            found = torch.autograd.grad(value, shared, allow_unused=True)
            pairs = zip(found, shared, strict=True)
            rows.append(
                torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs])
            )
        unit_O = nn.functional.normalize(torch.stack(rows).double(), dim=1)
        total += (1 - unit_O @ unit_O.T).cpu().numpy()
    for name, each in supernet.named_buffers():
        each.copy_(state[name])
    supernet.train(training)
    supernet.use(was)
    np.fill_diagonal(total, 0.0)
    return total / repeats


def _shared(supernet: Supernet, choice: str) -> list[Tensor]:
    """The weights that more than one option of a choice can use."""
    own = {
        id(weight)
        for module in elastic_modules(supernet.body)
        if isinstance(module, OneOf) and module.dial.choice.name == choice
        for weight in module.operations.parameters()
    }
    weights = [weight for weight in supernet.parameters() if weight.requires_grad]
    return [weight for weight in weights if id(weight) not in own]


def largest_cut(
    distance_OO: Matrix, *, balanced: bool = True
) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], float]:
    """Two groups with the largest distance across, and that distance summed over pairs.

    All cuts are tried: for a handful of options.

    Args:
        distance_OO: symmetric.
        balanced: groups of equal size, or nearly where the number is odd, as in the paper's code;
            False: any sizes. Cuts of other sizes have other numbers of pairs, so they are compared
            by their mean then.

    Raises:
        InputError: fewer than two options.
    """
    count = len(distance_OO)
    if count < 2:
        raise InputError(f"at least two options can be cut in two, got {count}")
    sizes = [count // 2] if balanced else range(1, count // 2 + 1)
    best = -np.inf
    found: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    for one in (group for size in sizes for group in combinations(range(count), size)):
        other = tuple(at for at in range(count) if at not in one)
        across = float(distance_OO[np.ix_(one, other)].mean())
        if across > best:
            best, found = across, (one, other)
    return found, best * len(found[0]) * len(found[1])


def best_split(
    supernet: Supernet,
    batches: Batches,
    choices: Sequence[str] | None = None,
    *,
    repeats: int = 20,
    loss: ExampleLoss = cross_entropy,
    seed: int = 0,
) -> Split:
    """The choice whose options disagree most across their largest balanced cut.

    Args:
        supernet: some way into its training.
        batches: of the gradients.
        choices: that may be split; None: all that always matter and have two options or more.
        repeats: see `disagreement`.
        loss: of each example.
        seed: of the paths.

    Raises:
        InputError: nothing can be split.
    """
    names = choices or [
        c.name for c in supernet.space.choices if c.when is None and len(c.options) > 1
    ]
    if not names:
        raise InputError("a choice of at least two options can be split, this space has none")
    splits = []
    for name in names:
        distance = disagreement(supernet, name, batches, repeats=repeats, loss=loss, seed=seed)
        splits.append(Split(name, *largest_cut(distance)))
    return max(splits, key=lambda split: split.distance)
