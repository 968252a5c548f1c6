"""Networks of columns of different depth between the same two joins: any column answers alone.

After Larsson, Maire & Shakhnarovich, "FractalNet: Ultra-Deep Neural Networks without Residuals"
(2016, arXiv:1605.07648). With unit a layer (convolution, normalisation, ReLU) and ⊕ the mean,

    f_1(x) = unit(x),    f_{C+1}(x) = f_C(f_C(x)) ⊕ unit(x)

where joins that meet are one join over all columns that arrive. Column c (from 0) is a chain of
2^c units, so a block of C columns has 2^C - 1 units and is 2^(C-1) deep. Training drops paths: half
of the batches drop inputs of every join by chance ("local"), half run one column through the whole
network ("global"), after which each column is a network of its own: shallow ones answer early.

Where we depart: paths are dropped per input, not per batch; a batch picks local or global by a coin
instead of in turn; and columns can be run as the stages of a cascade, paid for all that ran.

Legend: T inputs, n of them still there, C columns, B blocks, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.cost import Cost, flops_per_input
from pointsman.depth.early_exit import KNOBS, ROWS_AT_ONCE
from pointsman.depth.paths.join import mean_join, survivors
from pointsman.errors import InputError
from pointsman.frontier.points import Frontier
from pointsman.run import (
    Answer,
    Confidence,
    Stage,
    StageCosts,
    StoppingRule,
    Thresholds,
    evaluating,
    run_staged,
    staged_outcomes,
)
from pointsman.select import max_probability

Unit = Callable[[int, int], nn.Module]  # width before, width after -> one layer


class FractalBlock(nn.Module):
    """C columns of 1, 2, 4, ... units between one input and one join.

    Args:
        before: width of the input.
        after: width of every unit's output.
        columns: C, at least 1.
        unit: makes one layer from its two widths.

    Raises:
        InputError: no column.
    """

    def __init__(self, before: int, after: int, columns: int, unit: Unit) -> None:
        super().__init__()
        if columns < 1:
            raise InputError(f"a fractal block has at least one column, got {columns}")
        self.columns = nn.ModuleList(
            nn.ModuleList(unit(before if place == 0 else after, after) for place in range(2**c))
            for c in range(columns)
        )

    @property
    def depth(self) -> int:
        """Units on the longest path, 2^(C-1)."""
        return int(2 ** (len(self.columns) - 1))

    def chain(self, column: int) -> list[nn.Module]:
        """The units of one column, in order."""
        units = self.columns[column]
        assert isinstance(units, nn.ModuleList)
        return list(units)

    def forward(
        self,
        x: Tensor,
        column: int | None = None,
        drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """All columns and their joins, or one column alone.

        Args:
            x: (n, before, ...)
            column: that runs alone; None: all.
            drop: probability with which each input of a join is dropped, for each row of x.
            generator: of the drops.
        """
        if column is not None:
            for unit in self.chain(column):
                x = unit(x)
            return x
        chains = [iter(self.chain(c)) for c in range(len(self.columns))]
        values = [x] * len(chains)
        for step in range(1, self.depth + 1):
            # Column c does 2^c units in as many steps as the deepest does 2^(C-1).
            due = [c for c in range(len(chains)) if step % (self.depth // 2**c) == 0]
            parts = [next(chains[c])(values[c]) for c in due]
            alive = None
            if drop > 0 and len(parts) > 1:
                alive = survivors(
                    len(x), len(parts), drop, generator=generator, device=parts[0].device
                )
            joined = mean_join(parts, alive)
            for c in due:
                values[c] = joined
        return values[-1]


class FractalNetwork(nn.Module):
    """Fractal blocks in a row, each followed by a module such as pooling, and a head.

    It is a `Trunk`: its blocks can carry exits as well.

    Args:
        widths: of the input and after each of the B blocks.
        columns: C, of every block.
        unit: makes one layer from its two widths; the same kind everywhere.
        head: from the last block's output to logits (n, K).
        between: B modules, one after each block; None: nothing.

    Raises:
        InputError: no block, no column, or another number of modules between than blocks.
    """

    def __init__(
        self,
        widths: Sequence[int],
        columns: int,
        unit: Unit,
        head: nn.Module,
        between: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if len(widths) < 2:
            raise InputError(f"widths are the input's and each block's, got {list(widths)}")
        between = [nn.Identity() for _ in widths[1:]] if between is None else between
        if len(between) != len(widths) - 1:
            raise InputError(f"{len(widths) - 1} blocks need a module each, got {len(between)}")
        self.blocks = nn.ModuleList(
            FractalBlock(before, after, columns, unit) for before, after in pairwise(widths)
        )
        self.between = nn.ModuleList(between)
        self.head = head
        self.num_columns = columns
        self.names = tuple(f"block {at}" for at in range(len(self.blocks)))

    @property
    def depth(self) -> int:
        """Units on the longest path, B * 2^(C-1)."""
        return len(self.blocks) * int(2 ** (self.num_columns - 1))

    def forward(
        self,
        x: Tensor,
        column: int | None = None,
        drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits (n, K) of the whole network, or of one column alone; see `FractalBlock.forward`.

        Raises:
            InputError: a column that does not exist.
        """
        if column is not None and not 0 <= column < self.num_columns:
            raise InputError(f"columns are 0 to {self.num_columns - 1}, got {column}")
        for block, between in zip(self.blocks, self.between, strict=True):
            x = between(block(x, column, drop, generator))
        logits: Tensor = self.head(x)
        return logits

    def drop_path(
        self,
        x: Tensor,
        *,
        local: float = 0.15,
        share: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits of one training batch under drop-path.

        Args:
            x: (n, ...)
            local: probability of a drop in a batch of local drops.
            share: of batches that run one column alone, any with equal chance.
            generator: of the draws, on the device of x; None means torch's global one.
        """
        device = None if generator is None else generator.device
        if float(torch.rand((), generator=generator, device=device)) < share:
            drawn = torch.randint(self.num_columns, (), generator=generator, device=device)
            return self(x, column=int(drawn))  # type: ignore[no-any-return]
        return self(x, drop=local, generator=generator)  # type: ignore[no-any-return]

    def alone(self, column: int) -> nn.Sequential:
        """One column through the whole network as a plain one, of the same (shared) modules."""
        if not 0 <= column < self.num_columns:
            raise InputError(f"columns are 0 to {self.num_columns - 1}, got {column}")
        named: OrderedDict[str, nn.Module] = OrderedDict()
        for at, (block, between) in enumerate(zip(self.blocks, self.between, strict=True)):
            assert isinstance(block, FractalBlock)
            for place, unit in enumerate(block.chain(column)):
                named[f"block{at}_unit{place}"] = unit
            named[f"between{at}"] = between
        named["head"] = self.head
        return nn.Sequential(named)

    # As a trunk: block by block, every column of it.

    def begin(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x

    def block(self, at: int, state: Tensor) -> Tensor:
        """The state after one block and what follows it."""
        after: Tensor = self.between[at](self.blocks[at](state))
        return after

    def features(self, state: Tensor) -> Tensor:
        """The state itself, (n, width, ...)."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """Logits (n, K)."""
        logits: Tensor = self.head(state)
        return logits

    # As a cascade: the columns from the shallowest to the deepest, then everything.

    def stages(self) -> list[Stage]:
        """C + 1 stages for `run_staged`: each column alone on the input, then the whole network."""
        columns = [Stage(partial(self.forward, column=c)) for c in range(self.num_columns)]
        return [*columns, Stage(self.forward)]

    def run(
        self,
        x: Tensor,
        thresholds: Thresholds,
        confidence: Confidence | StoppingRule = max_probability,
    ) -> Answer:
        """Answer each input with the first column that is sure enough, else with the whole network.

        Columns share no work, so the route pays for each that was asked. A threshold of inf leaves
        a column out. In evaluation mode and without gradients.

        Args:
            x: (T, ...); may be empty.
            thresholds: one number, or C of them.
            confidence: logits (n, K) -> (n,), higher is surer; or a stopping rule.

        Returns:
            Logits (T, K) and the route over C + 1 stages; price it with `stage_costs(example)`.

        Raises:
            InputError: another number of thresholds, or NaN among them.
        """
        with evaluating(self), torch.no_grad():
            return run_staged(self.stages(), x, thresholds, confidence)

    def stage_costs(self, example: Tensor) -> StageCosts:
        """MFLOPs per input, counted: of each column alone, and of the whole network.

        Raises:
            InputError: an empty example.
        """
        amounts = [float(flops_per_input(self.alone(c), example)) for c in range(self.num_columns)]
        amounts.append(float(flops_per_input(self, example)))
        return StageCosts.of(Cost(np.array(amounts), "MFLOPs"))

    def frontier(
        self,
        x: Tensor,
        y: Tensor,
        knobs: Sequence[float] = KNOBS,
        *,
        confidence: Confidence | StoppingRule = max_probability,
        name: str = "columns",
    ) -> Frontier:
        """Share of right classes against MFLOPs, one threshold for all columns as the knob.

        Every column runs once on all of x. The reference is the whole network.

        Args:
            x: (T, ...), for a certified pick not trained on.
            y: (T,) classes.
            knobs: thresholds, from the safest to the cheapest; inf: the whole network at once.
            confidence: as for `run`.
            name: of the frontier.

        Raises:
            InputError: no input, or labels that do not fit.
        """
        if len(x) == 0:
            raise InputError("a frontier needs at least one input, got none")
        with evaluating(self), torch.no_grad():
            batches = [
                torch.stack([stage.answer(rows) for stage in self.stages()])
                for rows in torch.split(x, ROWS_AT_ONCE)
            ]
        outcomes = staged_outcomes(
            torch.cat(batches, dim=1),
            torch.as_tensor(y, device=x.device),
            self.stage_costs(x[:1]),
            {knob: knob for knob in knobs},
            confidence=confidence,
        )
        return Frontier.from_outcomes(name, outcomes)
