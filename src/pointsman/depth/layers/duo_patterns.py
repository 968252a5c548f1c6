"""The best pattern of feed-forward sizes for each token, known only with the answer in hand.

Stage 2 of Duo-LLM (see `duo`). All patterns of one token, E to the power L, are tried; patterns
that begin alike share what they have in common. The paper does not say which pattern the context
tokens have meanwhile; here they all use the big feed-forwards, so a token's keys and values of
earlier places come from one pass of the big model and the loss of a token depends on its own
pattern alone. The pattern of all big then has exactly the big model's loss.

The oracle picks the least of many losses, so a part of its gain is luck. `dropout` measures it:
patterns are chosen in a pass with some of the embedded entries left out, and judged without.

Legend: n sequences, S tokens, D width, H heads, L layers, P patterns.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.depth.decoder import CausalAttention
from pointsman.depth.layers.duo import BIG, DuoDecoder, positions
from pointsman.depth.layers.paths import MOST_PATHS
from pointsman.errors import InputError

Pattern = tuple[int, ...]


def all_patterns(layers: int, branches: int = 2) -> list[Pattern]:
    """Every choice of a branch in each layer.

    Raises:
        InputError: more than 100,000 of them.
    """
    if branches**layers > MOST_PATHS:
        raise InputError(
            f"at most {MOST_PATHS:,} patterns are tried, {branches} branches in {layers} layers "
            f"have {branches**layers:,}"
        )
    return list(product(range(branches), repeat=layers))


def big_layers(pattern: Pattern) -> int:
    """How many layers of a pattern are big."""
    return sum(branch == BIG for branch in pattern)


@torch.no_grad()
def pattern_losses(
    model: DuoDecoder,
    windows: Tensor,
    patterns: Sequence[Pattern],
    *,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss in nats of each token's successor under each pattern, (P, n, S).

    Args:
        model: in evaluation mode.
        windows: (n, S + 1) token ids.
        patterns: each of L branches.
        dropout: share of the embedded entries left out, of token and context alike.
        generator: of the dropout.

    Raises:
        InputError: a pattern of another length.
    """
    if any(len(pattern) != model.layers for pattern in patterns) or not patterns:
        raise InputError(f"a pattern has a branch for each of {model.layers} layers")
    ids, targets = windows[:, :-1], windows[:, 1:]
    x, places = model.decoder.begin(ids), positions(ids)
    if dropout > 0:
        kept = torch.rand(x.shape, generator=generator) >= dropout
        x = x * kept.to(x) / (1 - dropout)
    context = _context(model, x, places)
    found = torch.empty(len(patterns), *ids.shape, dtype=x.dtype)

    def walk(some: list[tuple[int, Pattern]], at: int, state: Tensor) -> None:
        if at == model.layers:
            logits = model.decoder.finish(state).transpose(1, 2)
            loss = functional.cross_entropy(logits, targets, reduction="none")
            for place, _ in some:
                found[place] = loss
            return
        block = model.block(at)
        after = state + _attend(block.attention, block.norm_1(state), places, *context[at])
        for branch in sorted({pattern[at] for _, pattern in some}):
            rest = [item for item in some if item[1][at] == branch]
            choice = torch.full(ids.shape, branch, dtype=torch.int64)
            walk(rest, at + 1, model.fed(at, after, partial(_same, choice)))

    walk(list(enumerate(patterns)), 0, x)
    return found


def _same(choice: Tensor, at: int, tokens: Tensor) -> Tensor:
    return choice


def _context(model: DuoDecoder, x: Tensor, places: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (n, H, S, d) of the big model at each layer."""
    found = []
    for at in range(model.layers):
        block = model.block(at)
        _, key, value = _parts(block.attention, block.norm_1(x), places)
        found.append((key, value))
        x = model.fed(at, model.attended(at, x, places), None)
    return found


def _parts(attention: CausalAttention, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads = attention.heads
    parts = attention.mix(x).unflatten(-1, (3 * heads, -1)).transpose(1, 2)
    turned = attention.rotary(parts[:, : 2 * heads], places)
    return turned[:, :heads], turned[:, heads:], parts[:, 2 * heads :]


def _attend(
    attention: CausalAttention, x: Tensor, places: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Each token over the context's keys and values before it, and over its own."""
    query, key, value = _parts(attention, x, places)
    scores = query @ keys.transpose(-1, -2)
    own = (query * key).sum(dim=-1)
    scores = torch.diagonal_scatter(scores, own, dim1=-2, dim2=-1) * query.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    shares = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    self_share = shares.diagonal(dim1=-2, dim2=-1)[..., None]
    mixed = shares @ values + self_share * (value - values)
    result: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return result


def oracle_choices(
    losses_PnS: Tensor, patterns: Sequence[Pattern], big: int | None = None
) -> tuple[Tensor, Tensor]:
    """The best pattern of each token, among those with so many big layers.

    Args:
        losses_PnS: of the patterns.
        patterns: P.
        big: layers that are big. None: any number.

    Returns:
        Its loss (n, S), and the branches (n, S, L).

    Raises:
        InputError: no pattern has so many big layers.
    """
    rows = [at for at, p in enumerate(patterns) if big is None or big_layers(p) == big]
    if not rows:
        raise InputError(f"none of the {len(patterns)} patterns has {big} big layers")
    best = losses_PnS[rows].min(dim=0)
    table = torch.tensor([patterns[at] for at in rows])
    return best.values, table[best.indices]


def difficulty(losses_PnS: Tensor, patterns: Sequence[Pattern]) -> Tensor:
    """(n, S): what compute can buy a token, its loss with no big layer less that of its best.

    With bypass among the branches, "no big layer" is the pattern of all small ones.
    """
    small = patterns.index((BIG + 1,) * len(patterns[0]))
    return losses_PnS[small] - losses_PnS.amin(dim=0)
