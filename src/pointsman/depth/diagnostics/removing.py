"""What changes if a block is left out, or a token forgotten.

Legend: n inputs, S tokens, D width, B blocks, C classes, N tokens of all inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pointsman.depth.diagnostics.walking import TINY, Step, end, minus, run
from pointsman.depth.trunks.trunk import Trunk
from pointsman.errors import InputError
from pointsman.run import State


@dataclass(frozen=True, eq=False)
class SkipEffects:
    """What leaving block s out at earlier tokens changes at later ones.

    Attributes:
        mean: (B, B): row s, column l: |d_l - d'_l| / |d_l|, mean over later tokens; 0 for l <= s.
        largest: (B, B): the same, largest over later tokens, mean over inputs and cuts.
        output: (B,) |softmax - softmax'|, mean over later tokens.
    """

    mean: Tensor
    largest: Tensor
    output: Tensor


@torch.no_grad()
def skip_effects(
    trunk: Trunk, x: State, cuts: Sequence[int], *, keep: int = 1, local: bool = False
) -> SkipEffects:
    """Leave each block out at the tokens before a cut, and see what changes from the cut on.

    What a block does at a token can reach later tokens only if later blocks build on it.

    Args:
        trunk: whose states are (n, S, D), run in evaluation mode.
        x: a batch of sequences of one length.
        cuts: places t: the tokens keep to t - 1 are changed, those from t on are looked at.
        keep: tokens at the beginning that stay as they are.
        local: each later block alone meets the state without what the block gave, instead of all
            together: what it reads itself, not what came to it through others.

    Raises:
        InputError: states that are not sequences, or a cut outside them.
    """
    plain, logits = run(trunk, x)
    _check_cuts(plain[0], cuts, keep)
    added = [b - a for a, b in pairwise(plain)]
    blocks = len(added)
    mean, largest = torch.zeros(2, blocks, blocks, dtype=plain[0].dtype, device=plain[0].device)
    output = torch.zeros(blocks, dtype=plain[0].dtype, device=plain[0].device)
    for cut in cuts:
        span = slice(keep, cut)
        for s in range(blocks):
            if local:
                changed = _local(trunk, x, plain, added, s, span)
            else:
                states, other = run(trunk, x, _leaving_out(trunk, s, span))
                changed = [b - a for a, b in pairwise(states)]
                gap = (logits.softmax(-1) - other.softmax(-1))[:, cut:].norm(dim=-1)
                output[s] += gap.mean() / len(cuts)
            for at in range(s + 1, blocks):
                size = added[at][:, cut:].norm(dim=-1).clamp(min=TINY)
                ratio = (added[at] - changed[at])[:, cut:].norm(dim=-1) / size
                mean[s, at] += ratio.mean() / len(cuts)
                largest[s, at] += ratio.amax(dim=1).mean() / len(cuts)
    return SkipEffects(mean, largest, output)


def _leaving_out(trunk: Trunk, s: int, span: slice) -> Step:
    def step(at: int, state: State) -> State:
        after = trunk.block(at, state)
        if at != s:
            return after
        return tree_map(lambda new, old: _spliced(new, old, span), after, state)

    return step


def _local(
    trunk: Trunk, x: State, plain: list[Tensor], added: list[Tensor], s: int, span: slice
) -> list[Tensor]:
    """What each block adds if it alone meets its state less what block s gave in the span."""
    without = torch.zeros_like(added[s])
    without[:, span] = added[s][:, span]
    changed: list[Tensor] = []

    def step(at: int, state: State) -> State:
        if at > s:
            features = trunk.features(state)
            other = minus(trunk, state, without)
            changed.append(trunk.features(trunk.block(at, other)) - (features - without))
        else:
            changed.append(added[at])
        return trunk.block(at, state)

    run(trunk, x, step)
    return changed


@torch.no_grad()
def erasure(trunk: Trunk, x: State, token: int) -> Tensor:
    """Until which depth a token is needed: its state is replaced by the mean over tokens, (B + 1,).

    Entry l: how much the softmax of the tokens after it changes if the state before block l (B: the
    last one) is replaced at this token; it can only matter while later blocks read the token.

    Args:
        trunk: whose states are (n, S, D), run in evaluation mode.
        x: a batch of sequences of one length.
        token: the place that is erased.

    Raises:
        InputError: states that are not sequences, or no token after it.
    """
    plain, logits = run(trunk, x)
    _check_cuts(plain[0], [token + 1], 0)
    found = []
    for depth in range(len(plain)):
        mean = plain[depth].mean(dim=(0, 1))
        change = torch.zeros_like(plain[depth])
        change[:, token] = plain[depth][:, token] - mean

        def step(at: int, state: State, depth: int = depth, change: Tensor = change) -> State:
            return trunk.block(at, minus(trunk, state, change) if at == depth else state)

        last = minus(trunk, end(trunk, x), change) if depth == len(trunk.names) else None
        other = trunk.finish(last) if last is not None else run(trunk, x, step)[1]
        gap = (logits.softmax(-1) - other.softmax(-1))[:, token + 1 :].norm(dim=-1)
        found.append(gap.mean())
    return torch.stack(found)


def _spliced(new: object, old: object, span: slice) -> object:
    if not isinstance(new, Tensor) or not isinstance(old, Tensor) or new.ndim < 3:
        return new
    result = new.clone()
    result[:, span] = old[:, span]
    return result


def _check_cuts(state: Tensor, cuts: Sequence[int], keep: int) -> None:
    if state.ndim != 3 or not cuts or any(not keep < cut < state.shape[1] for cut in cuts):
        raise InputError(
            f"cuts lie after token {keep} and before the end of states (inputs, tokens, width), "
            f"got {list(cuts)} for states {tuple(state.shape)}"
        )
