"""RADD: hidden-token diffusion whose network needs no time, so that its answers can be kept.

Ou et al., "Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean
Data" (2024, arXiv 2406.03736).

In diffusion that hides tokens the score is a number of time times the distribution of the clean
token given those that show. A network without time input therefore suffices, and what it says can
be used again until a token changes: with n steps and d tokens about n (1 - (1 - 1/n)^d) evaluations
in place of n. The parts: `steps.TokenTransformer`, `steps.Unmasking`, `steps.WhenChanged`.

What was settled:
- Bytes of the standard library, 32 to a sequence, a transformer of two layers of width 48, 300
  updates of the loss that hides by rate; sampling with 4 times as many steps as tokens.
- The other side is the same network with the time as a further input, as score models without the
  factorisation have: it must be evaluated at every step. Its training and its random numbers are
  the same. It samples with as many steps, and with no fewer evaluations than the cache needs.
- Text is judged by the bits a byte that a bigram model of the training bytes gives it, and models
  by the bound on held-out bytes, over the same hidden places for both.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.steps.absorbing import TokenTransformer
    from pointsman.steps.sampling import Sampled, StepPolicy

LENGTH, WIDTH, LAYERS, HEADS = 32, 48, 2, 4
UPDATES, BATCH, RATE = 300, 32, 3e-3
SAMPLES, STEPS = 64, 4 * LENGTH


def quick() -> None:
    """Cached and uncached sampling give the same tokens; evaluations match the formula."""
    import torch

    from pointsman.cost import Cost
    from pointsman.steps.absorbing import Unmasking, all_hidden, even_times, expected_evaluations
    from pointsman.steps.policies.caching import WhenChanged
    from pointsman.steps.policies.plain import Always
    from pointsman.steps.sampling import Evaluation, sample

    net = _network(0, timed=False)
    runs = [_sampled(net, policy, 40, samples=4) for policy in (Always(), WhenChanged())]
    must(torch.equal(runs[0].x, runs[1].x), "keeping what cannot have changed changes nothing")
    must(runs[0].evaluations.tolist() == [40] * 4, "without the cache every step evaluates")

    def blank(x: "Tensor", t: float, condition: "Tensor | None") -> "Tensor":
        return torch.zeros(*x.shape, 2)

    for length, steps in ((16, 64), (32, 16)):
        counted = sample(
            [Evaluation("blank", blank, Cost(1.0, "evaluations"))],
            WhenChanged(),
            Unmasking(2),
            all_hidden(1000, length, 2),
            even_times(steps),
            generator=torch.Generator().manual_seed(0),
        )
        found, wanted = float(counted.cost.mean()), expected_evaluations(length, steps)
        must(abs(found / wanted - 1) < 0.02, f"{steps} steps of {length} tokens: {wanted}, {found}")


def _network(seed: int, *, timed: bool) -> "TokenTransformer":
    import torch

    from pointsman.claims.language import BYTES
    from pointsman.steps.absorbing import TokenTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = TokenTransformer(
            vocabulary=BYTES, length=LENGTH, width=WIDTH, layers=LAYERS, heads=HEADS, timed=timed
        )
    return net.eval()


def _sampled(
    net: "TokenTransformer", policy: "StepPolicy", steps: int, *, samples: int = SAMPLES
) -> "Sampled":
    import torch

    from pointsman.steps.absorbing import Unmasking, all_hidden, even_times
    from pointsman.steps.sampling import sample

    return sample(
        [net.evaluation("network", LENGTH)],
        policy,
        Unmasking(net.vocabulary),
        all_hidden(samples, LENGTH, net.vocabulary),
        even_times(steps),
        generator=torch.Generator().manual_seed(0),
    )


def full(seed: int) -> Figures:
    """Bound, bits a byte of samples, and evaluations: without time and cache, with, and timed."""
    import torch

    from pointsman.claims import language
    from pointsman.steps.policies.caching import WhenChanged
    from pointsman.steps.policies.plain import Always

    corpus = language.corpus(200_000)
    free, timed = _network(seed, timed=False), _network(seed, timed=True)
    found = {}
    for name, net in {"without time": free, "timed": timed}.items():
        _train(net, corpus.train, seed)
        found[f"{name}: held-out bits"] = _bound(net, corpus.validation)
    cached = _sampled(free, WhenChanged(), STEPS)
    spent = float(cached.evaluations.double().mean())
    runs = {
        "without time": _sampled(free, Always(), STEPS),
        "cached": cached,
        "timed": _sampled(timed, Always(), STEPS),
        "timed, fewer steps": _sampled(timed, Always(), -int(-spent)),
    }
    for name, run in runs.items():
        found[f"{name}: evaluations"] = float(run.evaluations.double().mean())
        found[f"{name}: sampled bits"] = _bigram_bits(run.x, corpus.train)
    same = torch.equal(runs["without time"].x, cached.x)
    found["cached: same text"] = float(same)
    return found


def _train(net: "TokenTransformer", stream: "Tensor", seed: int) -> None:
    import torch

    from pointsman.steps.absorbing import hide_by_rate

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
    net.train()
    for _ in range(UPDATES):
        tokens = _windows(stream, BATCH, generator)
        optimiser.zero_grad()
        loss = _loss(net, tokens, *hide_by_rate(BATCH, LENGTH, generator))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    net.eval()


def _loss(
    net: "TokenTransformer", tokens: "Tensor", hidden: "Tensor", weight: "Tensor"
) -> "Tensor":
    """Hiding by rate lambda weighs by 1 / lambda, and lambda is the time."""
    from pointsman.steps.absorbing import clean_loss

    return clean_loss(lambda x: net(x, 1 / weight), tokens, hidden, weight, net.vocabulary)


def _windows(stream: "Tensor", count: int, generator: "object") -> "Tensor":
    import torch

    starts = torch.randint(len(stream) - LENGTH, (count, 1), generator=generator)  # type: ignore[call-overload]
    windows: Tensor = stream[starts + torch.arange(LENGTH)].long()
    return windows


def _bound(net: "TokenTransformer", stream: "Tensor") -> float:
    """Bits a byte, over the same windows and hidden places for every network."""
    import math

    import torch

    from pointsman.steps.absorbing import hide_by_rate

    generator = torch.Generator().manual_seed(0)
    tokens = _windows(stream, 1000, generator)
    with torch.no_grad():
        nats = _loss(net, tokens, *hide_by_rate(1000, LENGTH, generator))
    return float(nats) / math.log(2)


def _bigram_bits(tokens: "Tensor", stream: "Tensor") -> float:
    """Bits a byte of samples under counts of pairs of bytes, a half added to each."""
    import torch

    from pointsman.claims.language import BYTES

    pairs = stream[:-1].long() * BYTES + stream[1:].long()
    counts = torch.bincount(pairs, minlength=BYTES**2).view(BYTES, BYTES) + 0.5
    bits = -(counts / counts.sum(dim=1, keepdim=True)).log2()
    return float(bits[tokens[:, :-1], tokens[:, 1:]].mean())


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    same = all(figures["cached: same text"] == 1 for figures in measurements)
    fewer = at["timed: evaluations"] >= 3 * at["cached: evaluations"]
    model = at["without time: held-out bits"] <= 1.02 * at["timed: held-out bits"]
    text = at["cached: sampled bits"] <= 1.02 * at["timed: sampled bits"]
    return same and fewer and model and text


CLAIM = Claim(
    slug="radd",
    paper="Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of "
    "Clean Data",
    year=2024,
    arxiv="2406.03736",
    level="steps",
    claim="A network of hidden-token diffusion needs no time input, and its predictions can be "
    "kept until a token changes: as good text from a third of the evaluations.",
    baseline="The same network with time as an input, which is evaluated at every step.",
    criterion="With 4 steps a token: the cache gives the same text, from at most a third of the "
    "evaluations; and in the mean over seeds the network without time is at most 2% above the "
    "timed one in its bound on held-out bytes and in bits a byte of its samples.",
    quick=quick,
    full=full,
    decide=decide,
    composition="transformer without time · loss hiding by rate · evaluated when tokens changed",
    entry="pointsman.steps.WhenChanged",
    note="The timed network with only as many steps as the cached one has evaluations is judged no "
    "worse here: a model this small says too little about its neighbours for revealing several "
    "tokens at once to cost anything, so the gain is only against sampling with as many steps.",
    key={
        "evaluations, cached": "cached: evaluations",
        "timed": "timed: evaluations",
        "sampled bits, cached": "cached: sampled bits",
        "timed bits": "timed: sampled bits",
    },
)
