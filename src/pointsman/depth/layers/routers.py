"""Small networks that decide, for each input and block, whether to skip, run or repeat it.

`WindowRouters` are those of Heakl et al., "Dr.LLM: Dynamic Layer Routing in LLMs" (2025,
arXiv:2510.12773): one router a block, before the block, on the mean features of a few windows of
the tokens,

    z = mean over windows of  W2 gelu(W1 mean(h in the window))        y = argmax z

so that a long text is not one blurred average. `FirstStateRouters` decide about all blocks at once
from the state before the first one: a single small network runs, and what will run is known before
it starts (batches can be formed by path, a bill can be written).

Scores become counts by `choose_runs`, whose price is the knob.

Legend: n inputs, S places (tokens, pixels), D width, W windows, B blocks, A actions (0 to A - 1
runs).
"""

import math
from collections.abc import Collection, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pointsman.depth.layers.paths import check_editable
from pointsman.errors import InputError


@runtime_checkable
class LayerRouters(Protocol):
    """What decides about the blocks of a network; implementations are `nn.Module`s.

    Deciding is in two steps so that training can keep what the first gives: `pool` makes the
    features of a state small, `scores` judges them.

    Attributes:
        blocks: B.
        editable: blocks that may be skipped or repeated; the others run once.
        actions: A.
    """

    blocks: int
    editable: tuple[int, ...]
    actions: int

    def pool(self, features: Tensor) -> Tensor:
        """Features of a state -> what the routers look at, (n, W, D)."""
        ...

    def ahead(self, pooled_nWD: Tensor) -> Tensor | None:
        """Scores (n, B, A) of all blocks from the state before the first.

        None: each block is decided about when its turn comes, by `scores`.
        """
        ...

    def scores(self, at: int, pooled_nWD: Tensor) -> Tensor:
        """Scores (n, A) of running block `at` 0 to A - 1 times; higher is preferred."""
        ...


class _Windows(nn.Module):
    """Means of windows of the places, (n, ...) -> (n, W, D)."""

    def __init__(self, width: int, windows: int) -> None:
        super().__init__()
        self.width, self.windows = width, windows

    def forward(self, features: Tensor) -> Tensor:
        places_nSD = _places(features, self.width)
        n, places, width = places_nSD.shape
        windows = min(self.windows, places)
        used = places - places % windows  # the tail is left out, as in the paper
        return places_nSD[:, :used].reshape(n, windows, used // windows, width).mean(dim=2)


def _places(features: Tensor, width: int) -> Tensor:
    """(n, D), (n, S, D) or (n, D, height, ...) as (n, S, D)."""
    if features.ndim == 2 and features.shape[1] == width:
        return features[:, None]
    if features.ndim >= 3 and features.shape[-1] == width:
        return features.flatten(1, -2)
    if features.ndim >= 3 and features.shape[1] == width:
        return features.flatten(2).transpose(1, 2)
    raise InputError(
        f"routers of width {width} need features (n, ..., {width}) or (n, {width}, ...), got "
        f"{tuple(features.shape)}"
    )


def _judge(width: int, hidden: int, outputs: int) -> nn.Sequential:
    first, last = nn.Linear(width, hidden), nn.Linear(hidden, outputs)
    for layer in (first, last):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.GELU(approximate="tanh"), last)


class WindowRouters(nn.Module):
    """One router a block, on windows of the features before it.

    Args:
        blocks: B.
        width: D of the features; where blocks differ, one number a block.
        actions: A; 3: skip, run, twice.
        editable: blocks that may be skipped or repeated. None: all.
        hidden: units.
        windows: W, at most; fewer where there are fewer places.

    Raises:
        InputError: sizes that do not fit, or a block that does not exist.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        *,
        actions: int = 3,
        editable: Collection[int] | None = None,
        hidden: int = 128,
        windows: int = 8,
    ) -> None:
        super().__init__()
        _check_sizes(blocks, width, actions, hidden, windows)
        self.blocks, self.actions = blocks, actions
        self.editable = check_editable(editable, blocks)
        self.windows = _Windows(width, windows)
        self.judges = nn.ModuleDict(
            {str(at): _judge(width, hidden, actions) for at in self.editable}
        )

    def pool(self, features: Tensor) -> Tensor:
        """Means of windows (n, W, D).

        Raises:
            InputError: features of another width.
        """
        means: Tensor = self.windows(features)
        return means

    def ahead(self, pooled_nWD: Tensor) -> Tensor | None:
        """None: each block has its turn."""
        return None

    def scores(self, at: int, pooled_nWD: Tensor) -> Tensor:
        """(n, A), the mean over windows."""
        scores: Tensor = self.judges[str(at)](pooled_nWD).mean(dim=1)
        return scores


class FirstStateRouters(nn.Module):
    """One network that decides about all blocks before the first one runs.

    Args:
        blocks: B.
        width: D of the features before the first block.
        actions: A.
        editable: blocks that may be skipped or repeated. None: all.
        hidden: units.
        windows: W, at most.

    Raises:
        InputError: sizes that do not fit, or a block that does not exist.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        *,
        actions: int = 3,
        editable: Collection[int] | None = None,
        hidden: int = 128,
        windows: int = 8,
    ) -> None:
        super().__init__()
        _check_sizes(blocks, width, actions, hidden, windows)
        self.blocks, self.actions = blocks, actions
        self.editable = check_editable(editable, blocks)
        self.windows = _Windows(width, windows)
        self.judge = _judge(width, hidden, blocks * actions)

    def pool(self, features: Tensor) -> Tensor:
        """Means of windows (n, W, D).

        Raises:
            InputError: features of another width.
        """
        means: Tensor = self.windows(features)
        return means

    def ahead(self, pooled_nWD: Tensor) -> Tensor:
        """(n, B, A), the mean over windows."""
        scores: Tensor = self.judge(pooled_nWD).mean(dim=1)
        return scores.reshape(len(scores), self.blocks, self.actions)

    def scores(self, at: int, pooled_nWD: Tensor) -> Tensor:
        """(n, A) of one block."""
        return self.ahead(pooled_nWD)[:, at]


def choose_runs(scores_nA: Tensor, price: float) -> Tensor:
    """How often each input runs a block, (n,) int64: the best score after the price; ties run more.

    The price is in the units of the scores, logits: e to the price is how many times likelier less
    work must be before it is chosen, or need not be.

        0       as the scores say
        above   every run costs so much; inf skips whatever may be skipped
        below   leaving the trained path (one run) costs so much; -inf never leaves it, so that the
                outcome is exactly the whole network's

    so that prices from -inf to inf lead from the network as it was trained to the cheapest path.

    Args:
        scores_nA: of 0 to A - 1 runs.
        price: see above.

    Raises:
        InputError: the price is NaN.
    """
    if math.isnan(price):
        raise InputError("the price of a run must be a number, got nan")
    n, actions = scores_nA.shape
    if math.isinf(price):
        return torch.full((n,), int(price < 0), dtype=torch.int64, device=scores_nA.device)
    runs = torch.arange(actions, device=scores_nA.device)
    paid = runs if price > 0 else (runs != 1).long()
    value_nA = scores_nA - abs(price) * paid.to(scores_nA.dtype)
    # of equals the most runs: argmax takes the first, so look from behind
    return actions - 1 - value_nA.flip(1).argmax(dim=1)


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1 or sizes[2] < 2:
        names: Sequence[str] = ("blocks", "width", "actions", "hidden", "windows")
        raise InputError(
            "routers need sizes of at least 1 and two actions, got "
            + ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))
        )
