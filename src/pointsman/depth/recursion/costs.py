"""What each token of a recursive decoder costs, exactly: what it runs, over the keys that it reads.

A token pays for the blocks around the stack, for the stack in each of its recursions, and for the
router each time it is asked. What a block costs on one key is counted by running it; each further
key adds a product with the query and one with the values, 4 D FLOPs in all.

The counts are those of decoding one token at a time. One pass over a whole batch (training) also
pays for masked keys and for fill, see `pointsman.count_flops` for that.

Legend: n sequences, S tokens of each, T = n * S, D width, R recursions.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointsman.cost import Cost, count_flops
from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import DecoderBlock
from pointsman.depth.recursion.mixture import MixtureOfRecursions, Recursed, attend_only
from pointsman.modules import evaluating


@dataclass(frozen=True, eq=False)
class TokenCosts:
    """What each token spends, in MFLOPs.

    Attributes:
        around: amount (n, S), on the blocks before and after the stack and on the head.
        stack: amount (n, S, R), on the shared stack in each recursion; 0 where it is not taken.
        routing: amount (n, S), on the router.
    """

    around: Cost
    stack: Cost
    routing: Cost

    @property
    def total(self) -> Cost:
        """Amount (n, S)."""
        stack = np.asarray(self.stack.amount).sum(axis=2)
        return self.around + Cost(stack, self.stack.unit) + self.routing


def token_costs(model: MixtureOfRecursions, found: Recursed) -> TokenCosts:
    """What each token of a run from the start of its sequence costs.

    Args:
        model: that ran.
        found: of its `forward`, or of `extend` with an empty cache before.
    """
    n, tokens = found.logits.shape[:2]
    taken = found.route.mask().reshape(n, tokens, model.recursions).numpy(force=True)
    places = np.broadcast_to(np.arange(1, tokens + 1), (n, tokens))
    per_key = 4 * model.decoder.embedding.embedding_dim / 1e6
    # keys that a token reads at each layer of a recursion, its own among them
    keys = places[..., None] if model.share_keys else taken.cumsum(axis=1)
    alone = np.array([_stack(model, recursion) for recursion in range(model.recursions)])
    stack = taken * (alone + len(model.shared) * per_key * (keys - 1))
    others = [at for at in range(len(model.decoder.blocks)) if at not in model.shared]
    once = sum(_block(model, at) for at in others) + _head(model)
    around = once + len(others) * per_key * (places - 1)
    return TokenCosts(
        Cost(around, "MFLOPs"), Cost(stack, "MFLOPs"), Cost(_routing(model, taken), "MFLOPs")
    )


def _token(model: MixtureOfRecursions) -> Tensor:
    weight = model.decoder.embedding.weight
    return weight.new_zeros(1, 1, weight.shape[1])


def _block(model: MixtureOfRecursions, at: int) -> float:
    place = torch.zeros(1, 1, dtype=torch.int64, device=_token(model).device)
    return float(count_flops(model.decoder.blocks[at], _token(model), place))


def _head(model: MixtureOfRecursions) -> float:
    return float(count_flops(model.decoder.finish, _token(model)))


def _stack(model: MixtureOfRecursions, recursion: int) -> float:
    """One token through the stack, reading one key at each layer."""
    if not model.share_keys or not recursion:
        return sum(_block(model, at) for at in model.shared)
    total, x = 0.0, _token(model)
    place = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for at in model.shared:
        block = model.decoder.blocks[at]
        assert isinstance(block, DecoderBlock)
        cache = KeyValueCache(1, 1, 1)
        with torch.no_grad():
            block.attention(x, place, cache)
        total += float(count_flops(attend_only, block, x, place, cache, 0))
    return total


def _routing(model: MixtureOfRecursions, taken: npt.NDArray[np.bool_]) -> Any:
    """(n, S): the router is asked of everyone first, and then of those that took the last."""
    x = _token(model)
    alive = torch.ones(1, 1, dtype=torch.bool, device=x.device)
    each, memory = [], None
    with evaluating(model), torch.no_grad():
        for recursion in range(model.recursions):
            choose = partial(model.router.choose, recursion, x, alive, memory)
            each.append(float(count_flops(choose)))
            memory = choose().memory
    asked = np.concatenate([np.ones_like(taken[..., :1]), taken[..., :-1]], axis=2)
    return asked @ np.array(each)
