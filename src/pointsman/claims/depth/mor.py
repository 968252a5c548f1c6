"""Mixture-of-Recursions: one shared stack of layers, which each token takes as often as it needs.

Bae et al., "Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level
Computation" (2025, arXiv 2507.10524).

A router before each recursion keeps the tokens with the largest gates. Those that are left out keep
their state and never come back; the others attend to one another alone. An auxiliary loss presses
gates to the right side of 1/2, so that the same router decides causally when text is written. The
part is `depth.MixtureOfRecursions` with `ExpertChoice`.

What was settled:
- A language model over bytes of the standard library's sources: one block, a stack of two blocks
  that is taken up to three times, one block; capacities 1, 2/3 and 1/3 as in the paper.
- The gate weighs the stack's change, unscaled (see `depth/recursion`). Training is short, so the
  auxiliary loss has weight 0.1, where the paper's long runs have 0.001.
- Loss is measured with causal decisions, not with the top-k of training, which sees later tokens;
  the loss with top-k is reported beside it.
- FLOPs of the stack are counted token by token as they are when text is written: linear layers, and
  attention over those keys that are there.
- Fixed recursion comes twice: the plain recursive transformer, and one in which every token takes
  all three recursions with learned gates. The criterion takes the better one. Random choice has
  gates too.
- Learning rate and length of training, alike for all, and the auxiliary weight were set on seeds
  100 and 101.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.claims.language import Corpus
    from pointsman.depth.recursion import DepthRouter, MixtureOfRecursions

WIDTH, HEADS, CONTEXT, RECURSIONS = 32, 4, 64, 3
CAPACITIES = (1, 2 / 3, 1 / 3)
UPDATES, BATCH, RATE, PRESSURE = 450, 8, 6e-3, 0.1
FIXED = ("plain recursion", "gated recursion")
MIXED = ("mixture", "random tokens")
SHARE_OF_FLOPS, MARGIN = 0.7, 0.03


def quick() -> None:
    """Full capacity at weight one is the plain recursive model; writing is causal and exact."""
    import torch

    from pointsman.cost import count_flops
    from pointsman.depth.recursion import EveryToken, ExpertChoice, token_costs

    plain = _model(EveryToken(RECURSIONS), seed=0).eval()
    ids = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = plain.decoder.block(0, plain.decoder.begin(ids))
        for _ in range(RECURSIONS):
            x = plain.decoder.block(2, plain.decoder.block(1, x))
        by_hand = plain.decoder.finish(plain.decoder.block(3, x))
        must(torch.allclose(plain(ids).logits, by_hand, atol=1e-5), "g = 1 is plain recursion")
        torch.manual_seed(0)
        router = ExpertChoice(WIDTH, CAPACITIES)
        for weight in router.parameters():
            torch.nn.init.normal_(weight, std=3.0)
        model = _model(router, seed=0).train()
        depths = model(ids).depths
        counts = [int((depths > r).sum()) for r in range(RECURSIONS)]
        must(counts == [24, 16, 8], f"training fills the capacities, got {counts}")
        model.eval()
        whole, cache = model(ids), model.cache(2)
        steps = [model.extend(ids[:, at : at + 1], cache) for at in range(12)]
        logits = torch.cat([step.logits for step in steps], dim=1)
        must(torch.allclose(logits, whole.logits, atol=1e-4), "step by step is the whole pass")
        must(len(whole.depths.unique()) > 1, "tokens differ in depth")
        stored = 2 * ids.numel() + 2 * int(whole.depths.sum())
        must(cache.entries() == stored, "only active tokens are cached")
        one, cache = model(ids[:1]), model.cache(1)
        counted = sum(
            float(count_flops(model.extend, ids[:1, at : at + 1], cache)) for at in range(12)
        )
        spent = float(token_costs(model, one).total.sum())
        must(abs(counted - spent) < 1e-6 * counted, "costs are what is run")


def full(seed: int) -> Figures:
    """Loss, depth and FLOPs of the stack for fixed depths, learned depths and random ones."""
    import torch

    from pointsman.claims import language
    from pointsman.depth.recursion import EveryToken, ExpertChoice, RandomTokens

    corpus, found = language.corpus(), {}
    torch.manual_seed(seed)
    routers: dict[str, DepthRouter] = {
        "plain recursion": EveryToken(RECURSIONS),
        "gated recursion": ExpertChoice(WIDTH, (1.0,) * RECURSIONS),
        "mixture": ExpertChoice(WIDTH, CAPACITIES, pressure=PRESSURE),
        "random tokens": RandomTokens(WIDTH, CAPACITIES, seed=seed),
    }
    for name, router in routers.items():
        model = _model(router, seed)
        _train(model, corpus, seed)
        loss, depth, flops = _evaluated(model, corpus)
        found[f"{name}: nats a byte"] = loss
        found[f"{name}: recursions"] = depth
        found[f"{name}: share of the stack's FLOPs"] = flops
        if name == "mixture":
            assert isinstance(router, ExpertChoice)
            router.train()
            found[f"{name}: nats, top-k sees ahead"] = _evaluated(model, corpus)[0]
    whole = found["plain recursion: share of the stack's FLOPs"]
    for name in routers:
        found[f"{name}: share of the stack's FLOPs"] /= whole
    return found


def _model(router: "DepthRouter", seed: int) -> "MixtureOfRecursions":
    """Four blocks, the middle two shared by the recursions."""
    import torch

    from pointsman.depth.decoder import Decoder
    from pointsman.depth.recursion import MixtureOfRecursions

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(vocabulary=128, width=WIDTH, layers=4, heads=HEADS, context=CONTEXT)
    return MixtureOfRecursions(decoder, range(1, 3), router)


def _windows(stream: "torch.Tensor", count: int, generator: "torch.Generator") -> "torch.Tensor":
    import torch

    starts = torch.randint(len(stream) - CONTEXT, (count, 1), generator=generator)
    return stream[starts + torch.arange(CONTEXT + 1)].long()


def _train(model: "MixtureOfRecursions", corpus: "Corpus", seed: int) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
    model.train()
    for _ in range(UPDATES):
        windows = _windows(corpus.train, BATCH, generator)
        found = model(windows[:, :-1])
        loss = cross_entropy(found.logits.flatten(0, 1), windows[:, 1:].flatten()) + found.loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def _evaluated(model: "MixtureOfRecursions", corpus: "Corpus") -> tuple[float, float, float]:
    """Nats a byte, mean recursions, and MFLOPs of the stack, on the same windows always."""
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.depth.recursion import token_costs

    windows = _windows(corpus.validation, 192, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model(windows[:, :-1])
    loss = cross_entropy(found.logits.flatten(0, 1), windows[:, 1:].flatten())
    flops = float(token_costs(model, found).stack.sum())
    return float(loss), float(found.depths.float().mean()), flops


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    nats = {name: mean(measurements, f"{name}: nats a byte") for name in (*FIXED, *MIXED)}
    flops = mean(measurements, "mixture: share of the stack's FLOPs")
    near = nats["mixture"] <= min(nats[name] for name in FIXED) + MARGIN
    return near and flops <= SHARE_OF_FLOPS and nats["mixture"] < nats["random tokens"]


CLAIM = Claim(
    slug="mor",
    paper="Mixture-of-Recursions: Learning Dynamic Recursive Depths for Adaptive Token-Level "
    "Computation",
    year=2025,
    arxiv="2507.10524",
    level="depth",
    claim="One shared stack that each token takes as often as a router says reaches the loss of "
    "taking it as often for every token, with a good third of the work left out.",
    baseline="The same stack taken three times by every token, plain or with learned gates, and "
    "the same capacities filled with tokens drawn at random; all trained alike.",
    criterion="At equal updates, over the seeds: the mixture's mean loss with causal decisions is "
    "at most 0.03 nats above that of the better fixed recursion, at no more than 70% of the "
    "shared stack's FLOPs, and below that of random tokens.",
    quick=quick,
    full=full,
    decide=decide,
    note="Against the plain recursive transformer the mixture's loss is lower, at 65% of the "
    "FLOPs. Once every token's recursions have gates too, it is 0.001 nats beyond the margin, and "
    "tokens drawn at random do as well or better. All see 230 kB of text only: at 2.3 nats a byte, "
    "who goes deeper hardly matters yet. Causal decisions cost next to nothing against top-k.",
    composition="decoder · shared stack · expert choice with a causal threshold · cache of active "
    "tokens",
    entry="pointsman.depth.MixtureOfRecursions",
    key={
        "nats, mixture": "mixture: nats a byte",
        "fixed": "gated recursion: nats a byte",
        "random": "random tokens: nats a byte",
        "FLOPs": "mixture: share of the stack's FLOPs",
    },
)
