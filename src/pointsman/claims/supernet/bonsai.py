"""Bonsai: heads and hidden units are judged by forward passes with many of them switched off.

Dery et al., "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes" (2024,
arXiv 2402.05406).

Rounds of a prior from one forward pass, masks over the candidates with the lowest prior, and a
linear regression of the utility on the masks, whose coefficients say what goes. No gradient is
taken. The part: `PerturbationPruning`.

What was settled:
- A byte-level decoder of six blocks trained for seconds; half of the parameters of its heads and
  hidden units go, without fine-tuning afterwards.
- Rounds of 10% with 60 masks each, on 16 windows, instead of 5% with 200 masks on 32 samples: it is
  a matter of seconds here, and candidates are fewer. Masks are drawn without complements, because
  pairs hold half as many directions (see the part).
- The regression departs from the prior, as the paper's does: there are fewer masks than candidates.
  Its first version here did not, and lost to the prior alone (11.7 against 11.4 in the mean over
  the seeds); it was put right on seed 100, where perplexity fell from 11.2 to 10.5.
- The prior alone takes the same rounds, removes by the prior, and takes it anew each round. Random
  removal is the mean over three draws.
- Losses are measured on files that no mask was judged on.
- Whether it beats pruning by gradients, or is faster than semi-structured pruning, is not measured.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pointsman.supernet.channels import ChannelGroup

UPDATES, SHARE, STEP, MASKS, JUDGED, TEST = 150, 0.5, 0.1, 60, 16, 48


def quick() -> None:
    """Coefficients recover a planted additive utility, and exactly the asked-for share goes."""
    import numpy as np
    from scipy.stats import spearmanr

    from pointsman.claims.small_decoder import SmallDecoder, windows
    from pointsman.supernet.language import PerturbationPruning
    from pointsman.supernet.language.perturbation import draw_masks, mask_effects

    rng = np.random.default_rng(0)
    planted = rng.normal(size=40)
    for paired in (True, False):
        masks = draw_masks(rng.random(40), 120, rng, paired=paired)
        found = mask_effects(masks, masks @ planted)
        rank = float(spearmanr(found, planted).statistic)
        must(rank > 0.95, f"planted effects are recovered, got a rank correlation of {rank:.2f}")
    import torch

    model = SmallDecoder(0, layers=1)
    ids = windows(torch.arange(2000) % 128, 2, 0)[:, :-1]
    pruned = PerturbationPruning(SHARE, step=0.25, masks=0).fit(model, ids, lambda net: 0.0).pruned_
    sizes = [
        sum(
            weight.numel()
            for name, weight in net.named_parameters()
            if "attention" in name or "feed" in name
        )
        for net in (model, pruned)
    ]
    head = 1 / 12  # of the parameters, the last unit removed may exceed the share
    left = sizes[1] / sizes[0]
    must(1 - SHARE - head <= left <= 1 - SHARE, f"half of the units' parameters, {sizes}")
    with torch.no_grad():
        must(bool(pruned(ids).isfinite().all()), "the smaller network runs")


def full(seed: int) -> Figures:
    """Perplexity at half of the parameters of heads and hidden units, for each way to choose."""
    import math

    from pointsman.claims.small_decoder import held_out, nats, trained
    from pointsman.supernet.language import PerturbationPruning
    from pointsman.supernet.language.perturbation import weighted_inputs

    model = trained(seed, UPDATES)
    judged, test = held_out(JUDGED, seed, "first"), held_out(TEST, seed, "second")

    def utility(net: "nn.Module") -> float:
        return -math.exp(nats(net, judged))

    def perplexity(pruning: PerturbationPruning) -> float:
        pruned = pruning.fit(model, judged[:, :-1], utility).pruned_
        return math.exp(nats(pruned, test))

    chance = [
        perplexity(
            PerturbationPruning(SHARE, step=STEP, masks=0, prior=_by_chance(10 * seed + draw))
        )
        for draw in range(3)
    ]
    bonsai = PerturbationPruning(SHARE, step=STEP, masks=MASKS, paired=False, seed=seed)
    prior = PerturbationPruning(SHARE, step=STEP, masks=0, prior=weighted_inputs)
    return {
        "whole: perplexity": math.exp(nats(model, test)),
        "perturbation: perplexity": perplexity(bonsai),
        "prior alone: perplexity": perplexity(prior),
        "random: perplexity": sum(chance) / len(chance),
        "perturbation: evaluations": float(bonsai.evaluations_),
    }


def _by_chance(seed: int):  # type: ignore[no-untyped-def]
    import torch

    generator = torch.Generator().manual_seed(seed)

    def prior(model: "nn.Module", group: "ChannelGroup", read: object) -> "Tensor":
        return torch.rand(group.size, generator=generator)

    return prior


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    found = mean(measurements, "perturbation: perplexity")
    return found <= mean(measurements, "prior alone: perplexity") and found <= mean(
        measurements, "random: perplexity"
    )


CLAIM = Claim(
    slug="bonsai",
    paper="Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes",
    year=2024,
    arxiv="2402.05406",
    level="supernet",
    claim="Which heads and hidden units of a transformer to remove can be learned from forward "
    "passes alone, by a regression of its quality on random masks.",
    baseline="Removal by the same prior alone in the same rounds, and by chance.",
    criterion="Without half of the parameters of heads and hidden units and without fine-tuning, "
    "in the mean over the seeds: held-out perplexity at most that of the prior alone and at most "
    "that of chance.",
    quick=quick,
    full=full,
    decide=decide,
    composition="channel groups · prior from weights and inputs · random masks · ridge regression "
    "chosen on rank correlation · narrowed network",
    entry="pointsman.supernet.language.PerturbationPruning",
    key={
        "perturbation": "perturbation: perplexity",
        "prior alone": "prior alone: perplexity",
        "random": "random: perplexity",
    },
    note="What is recorded is a second full run: in the first, on the same seeds, perturbation "
    "lost to the prior alone (11.7 against 11.4 in the mean), which led to the regression that "
    "departs from the prior. Seeds 3, 4 and 5 were run by hand after that, once, and the criterion "
    "holds there as well: 10.11 against 10.50 for the prior alone and 12.05 by chance in the mean. "
    "By seed, against the prior alone: 9.97 and 10.75, 9.71 and 10.14, 10.63 and 10.62, so that it "
    "is as good on one of the three.",
)
