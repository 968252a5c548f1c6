"""A causal language model that can answer after some of its layers, for training and evaluation.

Every exit reads the hidden state through the model's own norm and unembedding, as in Elhoushi et
al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding" (2024, arXiv
2404.16710), or through a head of its own.

Legend: n sequences, S tokens of each, D width, V vocabulary, L layers, E exits (the model's own end
is the last).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pointsman.depth.decoding.trunk import CausalTrunk, causal_trunk
from pointsman.errors import InputError


class LanguageExits(nn.Module):
    """A causal language model with exits after some of its layers; the weights stay shared.

    Args:
        model: a `Decoder`, another `CausalTrunk`, or a causal model of `transformers`.
        at: layers after which to exit, ascending, by index (negative counts from the end) or by
            name; not the last, which is an exit anyway.
        heads: for each of `at` a module from hidden states (n, S, D) to logits (n, S, V). None: the
            model's own norm and unembedding everywhere.

    Attributes:
        exits: names of the E exits.
        bounds: E + 1 layers: exit e stands after the layers below `bounds[e + 1]`.
        trunk: the model, layer by layer.

    Raises:
        InputError: exits that do not exist, are out of order, or another number of heads.
    """

    def __init__(
        self,
        model: nn.Module,
        at: Sequence[int | str],
        *,
        heads: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.trunk: CausalTrunk = causal_trunk(model)
        names = self.trunk.names
        cuts = [_cut(place, names) for place in at]
        if any(a >= b for a, b in pairwise([*cuts, len(names) - 1])):
            raise InputError(
                f"exits come once each, in the order of the layers and before the last of "
                f"{len(names)}, got {list(at)}"
            )
        if heads is not None and len(heads) != len(cuts):
            raise InputError(f"{len(cuts)} exits need {len(cuts)} heads, got {len(heads)}")
        self.bounds = (0, *(cut + 1 for cut in cuts), len(names))
        self.exits = tuple(names[bound - 1] for bound in self.bounds[1:])
        self.heads = None if heads is None else nn.ModuleList(heads)

    def __len__(self) -> int:
        """E, the end of the model included."""
        return len(self.exits)

    def answer(self, exit_: int, state: Tensor) -> Tensor:
        """Hidden states (n, S, D) at an exit → logits (n, S, V)."""
        if self.heads is not None and exit_ < len(self.heads):
            logits: Tensor = self.heads[exit_](state)
            return logits
        return self.trunk.finish(state)

    def forward(self, ids: Tensor, dropout: Sequence[float] | None = None) -> list[Tensor]:
        """Logits (n, S, V) of every exit for the token that follows, the earliest exit first.

        Args:
            ids: (n, S).
            dropout: for each of the L layers, the probability that a sequence leaves it out; the
                layer does not run for it. None: every layer runs.
        """
        state, found, exit_ = self.trunk.begin(ids), [], 0
        for at in range(len(self.trunk.names)):
            state = self._block(at, state, 0.0 if dropout is None else dropout[at])
            if at + 1 == self.bounds[exit_ + 1]:
                found.append(self.answer(exit_, state))
                exit_ += 1
        return found

    def _block(self, at: int, state: Tensor, dropped: float) -> Tensor:
        if not dropped:
            return self.trunk.block(at, state)
        rows = (torch.rand(len(state), device=state.device) >= dropped).nonzero().squeeze(1)
        if not len(rows):
            return state
        return state.index_copy(0, rows, self.trunk.block(at, state[rows]))


def _cut(place: int | str, names: tuple[str, ...]) -> int:
    if isinstance(place, str) and place in names:
        return names.index(place)
    if type(place) is int and -len(names) <= place < len(names):
        return place % len(names)
    raise InputError(
        f"there is no layer {place!r} to exit after: the model has {names[0]} to {names[-1]} "
        f"(0 to {len(names) - 1})"
    )
