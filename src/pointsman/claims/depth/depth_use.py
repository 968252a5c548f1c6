"""Does a deeper network do more steps, or the same steps in finer portions?

Csordás, Manning & Potts, "Do Language Models Use Their Depth Efficiently?" (2025,
arXiv:2505.13898).

Diagnostics on trained networks: how much each layer adds to its residual, what leaving a layer out
at earlier tokens changes at later ones, until which layer a token is needed, what the network's end
reads off each state, and which layer of a deep network a layer of a shallow one maps to best by a
linear map. The last decides here: if the deep network stretched the same computation, a layer maps
best to the layer of equal relative depth. The parts: `contributions`, `skip_effects`, `erasure`,
`logit_lens`, `linear_maps`.

What was settled:
- Byte-level language models of 4 and 8 layers trained alike, instead of large ones of one family.
- Maps from the states of the 4 layers (not from the embedding) to those of the 8, least squares on
  half of the tokens, judged on the other half; each network's first token is left out.
- The ratio of what the halves of the network add is reported and decides nothing: the paper finds
  it in networks of many layers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.depth.decoder import Decoder

SHALLOW, DEEP, WIDTH, CONTEXT = 4, 8, 32, 32
UPDATES, WINDOWS = 300, 96
CUTS = (8, 16, 24)


def quick() -> None:
    """An identity layer has no effect, effects go forward only, and contributions add up."""
    from itertools import pairwise

    import torch

    from pointsman.depth.diagnostics import contributions, hidden_states, logit_lens, skip_effects

    model = _model(SHALLOW, 0).eval()
    with torch.no_grad():
        block: Any = model.blocks[1]
        for last in (block.attention.out, block.feed_forward[2]):
            for weight in last.parameters():
                weight.zero_()
    ids = torch.randint(128, (3, 16), generator=torch.Generator().manual_seed(0))
    effects = skip_effects(model, ids, [6, 10])
    must(float(effects.mean[1].abs().max()) < 1e-5, "leaving out an identity changes nothing")
    must(float(effects.output[1]) < 1e-5, "nor does the output change")
    must(float(effects.mean.tril().abs().max()) == 0, "no layer changes one before it")
    must(float(effects.mean[0, 2]) > 0, "a layer that does something reaches later ones")
    states = hidden_states(model, ids)
    total = torch.stack([b - a for a, b in pairwise(states)]).sum(dim=0)
    must(torch.allclose(total, states[-1] - states[0], atol=1e-5), "contributions add up")
    must(float(contributions(model, ids).relative[1]) == 0, "an identity adds nothing")
    must(abs(float(logit_lens(model, ids).divergence[-1])) < 1e-6, "the end reads itself")


def _model(layers: int, seed: int) -> "Decoder":
    import torch

    from pointsman.depth.decoder import Decoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Decoder(vocabulary=128, width=WIDTH, layers=layers, heads=2, context=CONTEXT)


def full(seed: int) -> Figures:
    """Rank correlation of layers and the layers they map to best, and the other diagnostics."""
    import torch
    from scipy.stats import spearmanr
    from torch.nn import functional

    from pointsman.claims.language import corpus
    from pointsman.depth.decoding.training import fit_text
    from pointsman.depth.diagnostics import (
        contributions,
        erasure,
        hidden_states,
        linear_maps,
        logit_lens,
        skip_effects,
    )

    text, models = corpus(), {}
    for layers in (SHALLOW, DEEP):
        model = models[layers] = _model(layers, 10 * seed + layers)

        def loss_of(windows: torch.Tensor, model: "Decoder" = model) -> torch.Tensor:
            logits = model(windows[:, :-1])
            return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())

        fit_text(model, loss_of, text.train, updates=UPDATES, window=CONTEXT, rate=4e-3, seed=seed)
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(len(text.validation) - CONTEXT, (WINDOWS, 1), generator=generator)
    windows = text.validation[starts + torch.arange(CONTEXT + 1)].long()
    ids, deep = windows[:, :-1], models[DEEP]
    found = {}
    for layers, model in models.items():
        with torch.no_grad():
            loss = functional.cross_entropy(model(ids).flatten(0, 1), windows[:, 1:].flatten())
        found[f"{layers} layers: nats"] = float(loss)
        added = contributions(model, ids, start=1)
        found[f"{layers} layers: second half adds by the first"] = added.half_ratio
    shallow_states = hidden_states(models[SHALLOW], ids, start=1)[1:]
    error = linear_maps(shallow_states, hidden_states(deep, ids, start=1)[1:])
    best = error.argmin(dim=1) + 1
    for at, layer in enumerate(best.tolist(), 1):
        found[f"layer {at} of {SHALLOW}: maps best to layer of {DEEP}"] = float(layer)
    rank = spearmanr(range(SHALLOW), best.tolist()).statistic
    found["maps: rank correlation"] = float(rank) if rank == rank else 0.0  # all alike: none
    effects = skip_effects(deep, ids[:10], CUTS)
    half = DEEP // 2
    early, late = effects.output[:half].mean(), effects.output[half:].mean()
    found["skipped: output changes, second half by first"] = float(late / early)
    needed = erasure(deep, ids, CONTEXT // 2)
    found["erased after half of the layers: change left"] = float(needed[half] / needed[0])
    lens = logit_lens(deep, ids, start=1)
    found["lens at half of the layers: overlap of 5"] = float(lens.overlap[half])
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "maps: rank correlation") > 0.8


CLAIM = Claim(
    slug="depth-use",
    paper="Do Language Models Use Their Depth Efficiently?",
    year=2025,
    arxiv="2505.13898",
    level="depth",
    claim="A deeper network stretches the computation of a shallower one: a layer maps best, by a "
    "linear map, to the layer of about the same relative depth.",
    baseline="All other layers of the deeper network as targets of the same map.",
    criterion="Of byte-level models of 4 and 8 layers: the layer of the 8 that a layer of the 4 "
    "maps to with the least relative error rises with depth, Spearman's rank correlation above 0.8 "
    "in the mean over the seeds.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "rank correlation": "maps: rank correlation",
        "second half adds by the first": "8 layers: second half adds by the first",
    },
    composition="contributions · skip effects · erasure · logit lens · linear maps",
    entry="pointsman.depth.diagnostics.linear_maps",
    note="Narrowly, and the criterion asks for less than the claim: the order rises, but layers of "
    "the 4 map to layers 1 to 4 of the 8 only, not to those of equal relative depth. On a tuning "
    "seed all four mapped best to one layer. At this size the 8 layers are hardly better than the "
    "4.",
)
