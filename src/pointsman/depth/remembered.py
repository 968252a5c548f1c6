"""What a frozen trunk computes on a data set, computed once, so that heads can be trained on it.

A pass over the data then costs what the heads cost, not what the network does. The heads are the
network's own, so training them here trains them there:

    kept, features = remembered(net, x)
    train_heads(kept, Batches(features, y))
    gates = jei_dnn(kept, Batches(features, y), ..., costs=net.stage_costs(x[:1]))

Inputs cannot be augmented anew at each pass; what is remembered is as large as what the heads read.

Legend: N inputs, S exits, C classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pointsman.depth.early_exit import EarlyExit
from pointsman.depth.trunks.rows import checked_batch, count_rows, take_rows
from pointsman.run import State, evaluating

ROWS_AT_ONCE = 512
Features = tuple[Tensor, ...]  # what each early head reads (N, ...), and the last logits (N, C)


def remembered(net: EarlyExit, x: Any) -> tuple[EarlyExit, Features]:
    """The same exits over remembered features, and those features.

    Args:
        net: with a trained trunk; it is run in evaluation mode and left as it is.
        x: (N, ...) all inputs.

    Returns:
        A network with the same heads that begins with features, and its inputs: for each early
        exit what its head reads, then the logits of the last exit.

    Raises:
        InputError: no input.
    """
    checked_batch(x)
    starts = range(0, count_rows(x), ROWS_AT_ONCE)
    with evaluating(net), torch.no_grad():
        parts = [_features(net, take_rows(x, slice(at, at + ROWS_AT_ONCE))) for at in starts]
    features = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    early = list(range(len(net.heads)))
    example = take_rows(features, slice(0, 1))
    return EarlyExit(Remembered(net.exits), early, example=example, heads=net.heads), features


class Remembered(nn.Module):
    """A trunk whose blocks have run already: each only moves on to what the next exit reads.

    Args:
        names: of the S exits.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def begin(self, x: Features) -> State:
        """Everything that is remembered, tuples as they are."""
        return tuple(x)

    def block(self, at: int, state: State) -> State:
        """What the exits from this one on read."""
        return state if at == 0 else state[1:]

    def features(self, state: State) -> Tensor:
        """What the next head reads."""
        features: Tensor = state[0]
        return features

    def finish(self, state: State) -> Tensor:
        """The network's own logits (n, C)."""
        logits: Tensor = state[0]
        return logits


def _features(net: EarlyExit, x: Any) -> Features:
    state, found = x, []
    for at, stage in enumerate(net.stages()):
        state = state if stage.advance is None else stage.advance(state)
        last = at == len(net.heads)
        found.append(stage.answer(state) if last else net.trunk.features(state))
    return tuple(found)
