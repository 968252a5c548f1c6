"""MaskMoE: rare words see one expert, frequent words choose among some.

Su et al., "MaskMoE: Boosting Token-Level Learning via Routing Mask in Mixture-of-Experts" (2024,
arXiv 2407.09816).

Before training, every vocabulary id is given a fixed mask over the experts: ids of the head of the
frequency-sorted vocabulary leave V of them open, all others exactly one. The router chooses among
the open ones. With all open it is a switch layer, with one open for every id it is hash routing.
The parts are `moe.routers.MaskedRouter` and `frequency_mask`, the composition
`moe.systems.routed.maskmoe`.

What was settled:
- 200 words under Zipf's law, each with a vector of its own to be learned, beside a context that is
  shared by all and stronger in the input: so a router that reads the input scatters a rare word.
  Where a target depends on a word through a few shared classes only, the switch layer is the better
  one; that is another task.
- Frequent are the words that hold the first 60% of all occurrences; they see 4 of 8 experts.
- Masks even out the expected load, for hash routing too.
"""

from collections.abc import Sequence
from typing import Any

from pointsman.claims.frame import Claim, Figures, mean, must

WORDS, HALF, EXPERTS, VISIBLE, HEAD = 200, 16, 8, 4, 0.6
HIDDEN, UPDATES, BATCH = 32, 700, 256
ROWS = ("masked", "switch", "hash")


def quick() -> None:
    """Open for all it is a switch layer, one for each it is fixed; rare words keep one expert."""
    import torch
    from torch.testing import assert_close

    from pointsman.claims.worlds import max_violation
    from pointsman.moe import Context
    from pointsman.moe.routers import MaskedRouter, frequency_mask
    from pointsman.moe.systems.routed import maskmoe

    torch.manual_seed(0)
    counts = _shares() * 10_000
    masks = {row: _mask(row) for row in ROWS}
    per_word = masks["masked"].sum(dim=1)
    frequent = int((counts.cumsum(0) - counts < HEAD * counts.sum()).sum())
    must(per_word.tolist() == [VISIBLE] * frequent + [1] * (WORDS - frequent), "as many as asked")
    load = (counts[:, None] * masks["masked"] / per_word[:, None]).sum(dim=0)
    must(max_violation(load) < 0.05, "expected loads are even")
    ids_T = torch.randint(WORDS, (50,))
    x_TD, context = torch.randn(50, 8), Context(ids=ids_T)
    layer: Any = maskmoe(8, 4, masks["switch"])
    plain_TE = layer.router.router(x_TD)
    assert_close(layer.router(x_TD, context).scores, plain_TE)
    fixed = MaskedRouter(layer.router.router, frequency_mask(counts, EXPERTS, visible=1, head=0))
    probabilities = fixed(x_TD, context).scores.softmax(dim=1)
    assert_close(probabilities, fixed.eligible[ids_T].float())


def full(seed: int) -> Figures:
    """Error of all words and of rare ones, under three masks of the same layer."""
    import torch
    from torch.nn import functional

    from pointsman.moe import Context
    from pointsman.moe.systems.routed import maskmoe

    world, found = _world(seed), {}
    for row in ROWS:
        torch.manual_seed(seed)
        layer = maskmoe(2 * HALF, HIDDEN, _mask(row))
        optimiser = torch.optim.Adam(layer.parameters(), 3e-3, fused=True)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(UPDATES):
            ids_T, x_TD, y_TD = world(BATCH, generator)
            answer_TD, routing = layer(x_TD, context=Context(ids=ids_T))
            optimiser.zero_grad()
            (functional.mse_loss(answer_TD, y_TD) + routing.loss).backward()
            optimiser.step()
        ids_T, x_TD, y_TD = world(8192, torch.Generator().manual_seed(10_000 + seed))
        with torch.no_grad():
            answer_TD, routing = layer(x_TD, context=Context(ids=ids_T))
        error_T = (answer_TD - y_TD).square().mean(dim=1) / y_TD.var()
        rare_T = _mask("masked").sum(dim=1)[ids_T] == 1
        found[f"{row}: relative error, all words"] = float(error_T.mean())
        found[f"{row}: relative error, rare words"] = float(error_T[rare_T].mean())
        load_E = routing.route.load().double()
        found[f"{row}: fullest over mean load"] = float(load_E.max() / load_E.mean())
    return found


def _shares() -> Any:
    """(V,) how often each word occurs: Zipf's law."""
    import torch

    shares = torch.arange(1, WORDS + 1).double().reciprocal()
    return shares / shares.sum()


def _mask(row: str) -> Any:
    """(V, E): which experts a word may have."""
    from pointsman.moe.routers import frequency_mask

    visible = {"masked": VISIBLE, "switch": EXPERTS, "hash": 1}[row]
    head = {"masked": HEAD, "switch": 1.0, "hash": 0.0}[row]
    return frequency_mask(_shares(), EXPERTS, visible=visible, head=head)


def _world(seed: int) -> Any:
    """Draws words (T,), inputs (T, 2 HALF) of word and context, and targets (T, HALF * 2)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    looks, own = (torch.randn(WORDS, HALF, generator=generator) for _ in range(2))
    shared = torch.randn(HALF, HALF, generator=generator) / HALF**0.5

    def draw(count: int, generator: torch.Generator) -> Any:
        ids_T = torch.multinomial(_shares(), count, replacement=True, generator=generator)
        context = 2 * torch.randn(count, HALF, generator=generator)
        x_TD = torch.cat([looks[ids_T], context], dim=1)
        return ids_T, x_TD, torch.cat([own[ids_T], torch.tanh(context @ shared)], dim=1)

    return draw


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, words: str) -> float:
        return mean(measurements, f"{row}: relative error, {words}")

    rare = of("masked", "rare words") <= 0.85 * of("switch", "rare words")
    return rare and of("masked", "all words") <= 1.02 * of("hash", "all words")


CLAIM = Claim(
    slug="maskmoe",
    paper="MaskMoE: Boosting Token-Level Learning via Routing Mask in Mixture-of-Experts",
    year=2024,
    arxiv="2407.09816",
    level="moe",
    claim="Giving rare words one fixed expert and frequent words a choice of some learns rare "
    "words better than free routing, and all words as well as fixed routing.",
    baseline="The same layer with all experts open to all words (switch), and with one fixed "
    "expert for every word (hash).",
    criterion="With 200 words under Zipf's law and 8 experts, after equal updates and in the mean "
    "over the seeds: the error of rare words is at most 0.85 of that of the switch layer, and the "
    "error of all words at most 1.02 of that of hash routing.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.maskmoe",
    composition="masked linear router · top-1 · feed-forward experts · balancing loss",
    key={
        "rare, masked": "masked: relative error, rare words",
        "rare, switch": "switch: relative error, rare words",
        "all, masked": "masked: relative error, all words",
        "all, hash": "hash: relative error, all words",
    },
)
