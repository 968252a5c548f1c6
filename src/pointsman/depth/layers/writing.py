"""Texts written on the path that the prompt was given.

Where routers decide anew for each token, keys and values of a layer that one token skipped or ran
twice do not fit those of the next. So the prompt decides, and its path holds for all that is
written (Dr.LLM's released code decides again for each new token; here we depart): every token of
a text runs the same blocks equally often, and keys and values are kept for each run of a block.
The tokens are exactly those of the same path without a cache.

Legend: n texts, P tokens of the prompts, N new tokens, B blocks, V vocabulary.
"""

import torch
from torch import Tensor

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import Decoder
from pointsman.depth.layers.execute import LayerAnswer, run_layers, run_paths
from pointsman.depth.layers.network import PricedRouters, SkipNetwork
from pointsman.errors import InputError
from pointsman.modules import evaluating


@torch.no_grad()
def write_on_paths(
    network: SkipNetwork, ids: Tensor, new: int, *, price: float = 0.0, end: int | None = None
) -> LayerAnswer:
    """Continue texts greedily, each on the path that its prompt is given.

    With a `Decoder` as trunk a cache is used. Any other causal trunk reads its text again for each
    token, with the same result.

    Args:
        network: in any mode; run in evaluation mode. Its trunk takes ids (n, S) and gives logits
            (n, S, V).
        ids: (n, P) prompts of one length.
        new: N.
        price: of a run, see `choose_runs`.
        end: token after which a text only repeats it.

    Returns:
        Output (n, P + N) int64, prompts included, and the runs (n, B) of each text's path.

    Raises:
        InputError: prompts that are no ids, an empty prompt, a negative N, or more tokens than the
            model tells apart.
    """
    if ids.ndim != 2 or ids.is_floating_point() or not ids.shape[1] or new < 0:
        raise InputError(
            f"texts are continued from ids (texts, at least one token), got {tuple(ids.shape)} in "
            f"{ids.dtype}, with {new} new tokens"
        )
    with evaluating(network):
        trunk = network.trunk
        steps = _Cached(trunk, ids) if isinstance(trunk, Decoder) else None
        if steps is None:
            answer = run_layers(trunk, ids, PricedRouters(network.routers, price))
            logits, runs = answer.output[:, -1], answer.runs
        else:
            logits, runs = steps.first(PricedRouters(network.routers, price))
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for at in range(new):
            token = logits.argmax(dim=-1).to(ids.dtype)
            if end is not None:
                token = torch.where(ended, end, token)
                ended = ended | (token == end)
            ids = torch.cat([ids, token[:, None]], dim=1)
            if at < new - 1 and steps is not None:
                logits = steps.step(ids[:, -1:], runs)
            elif at < new - 1:
                logits = run_paths(trunk, ids, runs).output[:, -1]
    return LayerAnswer(ids, runs)


class _Cached:
    """A decoder's texts with a cache for each run of a block: `caches[k]` of the run k."""

    def __init__(self, trunk: Decoder, ids: Tensor) -> None:
        self.trunk, self.ids, self.done = trunk, ids, 0
        self.caches: list[KeyValueCache] = []

    def first(self, policy: PricedRouters) -> tuple[Tensor, Tensor]:
        """The prompt: logits (n, V) of what follows, and the runs (n, B) that it is given."""
        x = self.trunk.begin(self.ids)
        features = self.trunk.features(x)
        memory, counts = policy.begin(features), []
        for at in range(len(self.trunk.names)):
            times = policy.runs(at, self.trunk.features(x), memory)
            x = self._block(at, x, times)
            counts.append(times)
        self.done = self.ids.shape[1]
        return self.trunk.finish(x[:, -1:])[:, 0], torch.stack(counts, dim=1)

    def step(self, token: Tensor, runs: Tensor) -> Tensor:
        """One more token (n, 1) -> logits (n, V)."""
        x = self.trunk.begin(token)
        for at in range(len(self.trunk.names)):
            x = self._block(at, x, runs[:, at])
        self.done += 1
        return self.trunk.finish(x)[:, 0]

    def _block(self, at: int, x: Tensor, times: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        places = torch.arange(self.done, self.done + tokens, device=x.device).expand(n, tokens)
        for turn in range(int(times.max()) if n else 0):
            if turn == len(self.caches):
                self.caches.append(self.trunk.cache(n))
            rows = (times > turn).nonzero().squeeze(1)
            if len(rows) == n:
                x = self.trunk.block(at, x, places, self.caches[turn])
            else:
                part = self.trunk.block(at, x[rows], places[rows], self.caches[turn], rows)
                x = x.index_copy(0, rows, part)
        return x
