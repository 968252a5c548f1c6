"""Duo-LLM: a big and a small feed-forward in every layer, an oracle over patterns, and routers.

Alizadeh et al., "Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models"
(2024, arXiv:2410.10846).

A language model is trained with a coin thrown for each token and layer between a big feed-forward
and one of a sixteenth of its inner width. Then an oracle that knows the next token tries all
patterns of a token with one big layer and keeps the best; and routers, one linear map a layer, are
trained under one budget for all layers together. The parts: `DuoDecoder`, `mixed_loss`,
`pattern_losses`, `oracle_choices`, `fit_duo_routers`.

What was settled:
- Bytes of library sources, four layers, 16 patterns. While a token tries its patterns all earlier
  tokens have the big feed-forwards; "random" is the mean over the patterns of one big layer, in the
  same context. Routers run as they would serve, each token's context being what was chosen for it;
  random choices of one big layer are shown so, too.
- The oracle's choice knows the answer, so part of its gain is the luck of the least of several
  losses. The control chooses where a tenth of the embedded entries is left out at random, which
  still knows the answer, and is judged without.
- Routers are served by one threshold over all layers that spends one big layer a token on training
  text; what they spend on the validation text is reported.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.depth.layers.duo import DuoDecoder

LAYERS, WIDTH, HEADS, CONTEXT = 4, 32, 2, 32
UPDATES, ROUTER_UPDATES, WINDOWS, DROPOUT = 400, 150, 128, 0.1


def quick() -> None:
    """All big is the plain decoder; the oracle at k takes the least loss with k big layers."""
    import torch
    from torch.nn import functional

    from pointsman.depth.layers.duo_patterns import all_patterns, oracle_choices, pattern_losses

    model = _model(0).eval()
    windows = torch.randint(128, (4, 17), generator=torch.Generator().manual_seed(0))
    ids, targets = windows[:, :-1], windows[:, 1:]
    with torch.no_grad():
        logits = model(ids)
        must(torch.equal(logits, model.decoder(ids)), "with no choice all is big")
        plain = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        patterns = all_patterns(LAYERS)
        losses = pattern_losses(model, windows, patterns)
        big = losses[patterns.index((0,) * LAYERS)]
        must(torch.allclose(big, plain, atol=1e-5), "the pattern of all big is the model")
        best, choices = oracle_choices(losses, patterns, 1)
        must(bool(((choices == 0).sum(dim=-1) == 1).all()), "one big layer a token")
        must(torch.equal(oracle_choices(losses, patterns)[0], losses.amin(dim=0)), "the least")
        token = torch.zeros(4, 16, LAYERS, dtype=torch.int64)
        token[:, 9] = choices[:, 9]  # one token differs, its context is big
        alone = functional.cross_entropy(model(ids, token)[:, 9], targets[:, 9], reduction="none")
        must(torch.allclose(alone, best[:, 9], atol=1e-5), "what was tried is what would run")


def _model(seed: int) -> "DuoDecoder":
    import torch

    from pointsman.depth.layers.duo import DuoDecoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DuoDecoder(vocabulary=128, width=WIDTH, layers=LAYERS, heads=HEADS, context=CONTEXT)


def full(seed: int) -> Figures:
    """Nats a byte of the oracle, the routers and chance with so many big layers of four."""
    import torch

    from pointsman.claims.language import corpus
    from pointsman.depth.decoding.training import fit_text
    from pointsman.depth.layers.duo import fit_duo_routers, mixed_loss
    from pointsman.depth.layers.duo_patterns import all_patterns, oracle_choices, pattern_losses

    text, model = corpus(), _model(seed)
    fit_text(
        model,
        lambda windows: mixed_loss(model, windows, None),
        text.train,
        updates=UPDATES,
        window=CONTEXT,
        rate=6e-3,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(text.validation) - CONTEXT, (WINDOWS, 1), generator=generator)
    windows = text.validation[starts + torch.arange(CONTEXT + 1)].long()
    patterns = all_patterns(LAYERS)
    losses = pattern_losses(model, windows, patterns)
    blurred = pattern_losses(model, windows, patterns, dropout=DROPOUT, generator=generator)
    one = [at for at, pattern in enumerate(patterns) if pattern.count(0) == 1]
    by_pattern = losses.flatten(1).mean(dim=1)
    control = losses[one].gather(0, blurred[one].argmin(dim=0, keepdim=True))
    found = {
        "all big: nats": float(by_pattern[patterns.index((0,) * LAYERS)]),
        "all small: nats": float(by_pattern[patterns.index((1,) * LAYERS)]),
        "random, 1 big: nats": float(by_pattern[one].mean()),
        "best fixed pattern, 1 big: nats": float(by_pattern[one].min()),
        "oracle blurred, 1 big: nats": float(control.mean()),
        "oracle, any: nats": float(losses.amin(dim=0).mean()),
    }
    for big in (1, 2, 3):
        best, choices = oracle_choices(losses, patterns, big)
        found[f"oracle, {big} big: nats"] = float(best.mean())
        depth = ((choices == 0) * torch.arange(1, LAYERS + 1)).sum(dim=-1) / big
        found[f"oracle, {big} big: mean layer of the big"] = float(depth.mean())
    routers = fit_duo_routers(model, text.train, 1 / LAYERS, updates=ROUTER_UPDATES, seed=seed)
    with torch.no_grad():
        logits, choices = routers.choices(model, windows[:, :-1])
        found["routers, 1 big: nats"] = _nats(logits, windows)
        found["routers, 1 big: big layers a token"] = float(
            (choices == 0).sum(dim=-1).float().mean()
        )
        chance = torch.tensor(patterns)[one][
            torch.randint(len(one), choices.shape[:2], generator=generator)
        ]
        found["random as served, 1 big: nats"] = _nats(model(windows[:, :-1], chance), windows)
        served = model(windows[:, :-1], oracle_choices(losses, patterns, 1)[1])
        found["oracle as served, 1 big: nats"] = _nats(served, windows)
    return found


def _nats(logits: "Tensor", windows: "Tensor") -> float:
    from torch.nn import functional

    return float(functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    oracle, big = (mean(measurements, f"{n}: nats") for n in ("oracle, 1 big", "all big"))
    routers = mean(measurements, "routers, 1 big: nats")
    random = mean(measurements, "random, 1 big: nats")
    return oracle < big and abs(routers - random) < abs(routers - oracle)


CLAIM = Claim(
    slug="duo-llm",
    paper="Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models",
    year=2024,
    arxiv="2410.10846",
    level="depth",
    claim="An oracle that gives each token one big feed-forward beats a big one in every layer, "
    "and trained routers stay near random patterns, far from this oracle.",
    baseline="The same model with all feed-forwards big, and random patterns with one big layer.",
    criterion="In the mean over the seeds, on validation text: the oracle's loss with one big "
    "layer of four is below that of all big, and the trained routers' loss with one big layer is "
    "closer to that of random patterns than to the oracle's.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "oracle, 1 big": "oracle, 1 big: nats",
        "all big": "all big: nats",
        "routers": "routers, 1 big: nats",
        "random": "random, 1 big: nats",
    },
    composition="decoder with a big and a small feed-forward a layer · random mixture in training "
    "· every pattern tried · linear routers under one budget",
    entry="pointsman.depth.layers.DuoDecoder",
)
