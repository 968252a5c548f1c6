"""Skip, run or repeat each block of a residual network, for every input on its own.

In a residual network a block adds to a state that keeps its shape, so a block can be left out or
run again and what follows still knows what to do with the state. At each block the inputs that run
it are taken out of the batch, run together, and put back; the others are not touched and cost
nothing. With every count 1 this is the network itself, to the bit.

Legend: N inputs, n of them in one group, B blocks, R the most runs of a block, C classes.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from pointsman.cost import Cost, count_flops
from pointsman.depth.layers.paths import check_runs
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError, UnitError
from pointsman.modules import evaluating
from pointsman.route import Route
from pointsman.run import State


class LayerPolicy(Protocol):
    """Who decides how often each input runs each block."""

    def begin(self, features: Tensor) -> Any:
        """What to remember, from the features of the state before the first block."""
        ...

    def runs(self, at: int, features: Tensor, memory: Any) -> Tensor:
        """How often each input runs block `at`, (N,) int64, from the features before it."""
        ...


@dataclass(frozen=True, eq=False)
class FixedRuns:
    """Decided beforehand: `table` (N, B)."""

    table: Tensor

    def begin(self, features: Tensor) -> None:
        """Nothing is remembered."""

    def runs(self, at: int, features: Tensor, memory: Any) -> Tensor:
        """The column of the block."""
        return self.table[:, at].to(features.device)


@dataclass(frozen=True, eq=False)
class LayerAnswer:
    """What came out, and which blocks each input ran.

    Attributes:
        output: (N, ..., C), as the network's own.
        runs: (N, B) int64, how often each input ran each block.
    """

    output: Tensor
    runs: Tensor

    @property
    def route(self) -> Route:
        """The runs as pairs of weight 1: branch k * B + b is run k (from 0) of block b.

        Branches 0 to B - 1 are the blocks, those after them repeated runs.
        """
        inputs, blocks = self.runs.shape
        times = max(int(self.runs.max()), 1) if self.runs.numel() else 1
        turns_NR = torch.arange(times, device=self.runs.device)
        ran_NRB = turns_NR[None, :, None] < self.runs[:, None, :]
        return Route.from_dense(ran_NRB.reshape(inputs, times * blocks).to(torch.float32))


def run_layers(trunk: Trunk, x: State, policy: LayerPolicy) -> LayerAnswer:
    """Walk a network, asking a policy at each block how often each input runs it.

    Gradients flow through the output (not through the counts); to serve, call under
    `torch.no_grad()` and `evaluating(trunk)`.

    Args:
        trunk: whose blocks keep the shape of the state wherever one is skipped or repeated.
        x: a batch of N inputs, as `trunk.begin` takes it.
        policy: that decides.

    Raises:
        InputError: a block is skipped or repeated that changes the shape of the state, or counts
            that do not fit.
    """
    state = trunk.begin(x)
    features = trunk.features(state)
    memory, counts = policy.begin(features), []
    for at in range(len(trunk.names)):
        times = policy.runs(at, trunk.features(state) if at else features, memory)
        check_runs(times[:, None], len(features), 1)
        state = run_block(trunk, at, state, times)
        counts.append(times)
    return LayerAnswer(trunk.finish(state), torch.stack(counts, dim=1))


def run_paths(trunk: Trunk, x: State, runs_NB: Tensor) -> LayerAnswer:
    """As `run_layers`, with the runs given: (N, B) int64, or (B,) for all inputs alike."""
    if runs_NB.ndim == 1:
        runs_NB = runs_NB.expand(rows_of(x), -1)
    check_runs(runs_NB, rows_of(x), len(trunk.names))
    return run_layers(trunk, x, FixedRuns(runs_NB))


def run_block(trunk: Trunk, at: int, state: State, times: Tensor) -> State:
    """The state after each input ran block `at` so many times, (N,).

    Raises:
        InputError: not all inputs run the block once, and it changes the shape of the state.
    """
    most = int(times.max()) if len(times) else 1
    for turn in range(1, most + 1):
        due = times >= turn
        if bool(due.all()):
            after = trunk.block(at, state)
            if most > 1:
                _check_shapes(trunk, at, state, after)
            state = after
        else:
            rows = due.nonzero().squeeze(1)
            part = take_rows(state, rows)
            after = trunk.block(at, part)
            _check_shapes(trunk, at, part, after)
            state = tree_map(_put(rows), state, after)
    return state


def rows_of(state: State) -> int:
    """How many inputs a state holds.

    Raises:
        InputError: there is no tensor in it.
    """
    counts: list[int] = []
    tree_map_only(Tensor, lambda leaf: counts.append(len(leaf)), state)
    if not counts:
        raise InputError(f"a batch holds at least one tensor, got {type(state).__name__}")
    return counts[0]


def take_rows(state: State, rows: Tensor) -> State:
    """The state of some of the inputs only."""
    return tree_map_only(Tensor, lambda leaf: leaf.index_select(0, rows), state)


def _put(rows: Tensor) -> Any:
    def put(old: Any, new: Any) -> Any:
        return old.index_copy(0, rows, new) if isinstance(old, Tensor) else old

    return put


def _shapes(state: State) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    tree_map_only(Tensor, lambda leaf: shapes.append(tuple(leaf.shape)), state)
    return shapes


def _check_shapes(trunk: Trunk, at: int, before: State, after: State) -> None:
    if _shapes(before) != _shapes(after):
        raise InputError(
            f"only a block that keeps the shape of the state can be skipped or repeated, "
            f"{trunk.names[at]!r} turns {_shapes(before)} into {_shapes(after)}: let every input "
            "run it once (see skippable)"
        )


@torch.no_grad()
def skippable(trunk: Trunk, example: State) -> tuple[int, ...]:
    """The blocks that keep the shape of the state, which can be skipped and repeated.

    Args:
        trunk: a network.
        example: a batch of at least one input.
    """
    found = []
    with evaluating(*_modules(trunk)):
        state = trunk.begin(example)
        for at in range(len(trunk.names)):
            after = trunk.block(at, state)
            if _shapes(after) == _shapes(state):
                found.append(at)
            state = after
    return tuple(found)


@dataclass(frozen=True, eq=False)
class LayerCosts:
    """What one input spends: to begin and finish, at each run of a block, and on deciding.

    Attributes:
        fixed: a number, of `begin` and `finish`.
        blocks: amount (B,), of one run each.
        deciding: a number, of what decides; 0 where paths are given.

    Raises:
        UnitError: more than one unit.
    """

    fixed: Cost
    blocks: Cost
    deciding: Cost

    def __post_init__(self) -> None:
        units = {self.fixed.unit, self.blocks.unit, self.deciding.unit}
        if len(units) > 1:
            raise UnitError(f"the costs of layers have one unit, got {', '.join(sorted(units))}")

    def of(self, runs_NB: Tensor) -> Cost:
        """What each input spends on its path, deciding included: amount (N,)."""
        blocks = np.asarray(self.blocks.amount)
        spent = runs_NB.cpu().numpy() @ blocks
        return Cost(spent + float(self.fixed) + float(self.deciding), self.blocks.unit)

    def per_branch(self, route: Route) -> Cost:
        """For `route.cost`: what each branch of a `LayerAnswer.route` costs, amount (R * B,)."""
        blocks = np.asarray(self.blocks.amount)
        return Cost(np.tile(blocks, route.num_branches // len(blocks)), self.blocks.unit)

    @property
    def whole(self) -> Cost:
        """What one input spends on the network as it was trained, nobody deciding."""
        return self.fixed + self.blocks.sum()


def layer_costs(trunk: Trunk, example: State, deciding: Cost | None = None) -> LayerCosts:
    """MFLOPs per input, counted on an example.

    Args:
        trunk: a network.
        example: a batch of at least one input; counts are divided by its rows.
        deciding: per input, in MFLOPs. None: 0.

    Raises:
        InputError: an empty batch.
    """
    rows = rows_of(example)
    if not rows:
        raise InputError("FLOPs are counted on a batch of at least one input, got an empty one")
    blocks = []
    with evaluating(*_modules(trunk)), torch.no_grad():
        fixed = float(count_flops(trunk.begin, example))
        state = trunk.begin(example)
        for at in range(len(trunk.names)):
            blocks.append(float(count_flops(trunk.block, at, state)) / rows)
            state = trunk.block(at, state)
        fixed += float(count_flops(trunk.finish, state))
    return LayerCosts(
        Cost(fixed / rows, "MFLOPs"),
        Cost(np.array(blocks), "MFLOPs"),
        Cost(0.0, "MFLOPs") if deciding is None else deciding,
    )


def _modules(trunk: Trunk) -> list[nn.Module]:
    return [trunk] if isinstance(trunk, nn.Module) else []
