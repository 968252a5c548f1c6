"""epsinas: how much a network's outputs change when all its weights are one constant, then another.

Gracheva, "Neural Architecture Search: Two Constant Shared Weights Initialisations" (2023, arXiv
2302.04406).

All weights are set to one constant, biases to 0; a batch is run and its outputs scaled to [0, 1];
the same with another constant. The score is the mean absolute difference over the mean. No labels,
no gradients, no training. The part is `supernet.scores.epsinas`.

What was settled:
- Constants 1e-7 and 1, as published for cells; a batch of 256; batch statistics; float64.
- "Random weights" is the same score between the initialisations of two seeds instead of two
  constants: what the constants add. Both correlations are Spearman's with the test accuracy of the
  125 cells; only their size counts, because the sign is known to turn between tasks.
- Cells for which a score has no value (outputs all equal) are left out of its correlation, and
  counted.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

INPUTS = 256


def quick() -> None:
    """Nothing for networks that scale with their weights, something where units saturate."""
    import torch
    from torch import nn

    from pointsman.claims.architectures import noisy_digits, single_cell
    from pointsman.supernet.scores import epsinas

    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    constants = (1e-3, 1.0)

    def network(activation: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 8), activation, nn.Linear(8, 4), activation, nn.Linear(4, 3)
        )

    plain = epsinas(network(nn.ReLU()), x, constants=constants)
    must(plain < 1e-9, f"a perceptron with ReLU scales with its weights, got {plain}")
    bent = epsinas(network(nn.Tanh()), x, constants=constants)
    must(bent > 0.05, f"one with tanh does not, got {bent}")
    pixels = noisy_digits(0).train.x[:64]
    one, other = (epsinas(single_cell((3, 3, 3), seed), pixels) for seed in (0, 1))
    must(one == other, "a network's own weights play no part")


def full(seed: int) -> Figures:
    """Rank correlation with truth of the score, of its like on random weights, and of size."""
    import copy
    import math

    import torch

    from pointsman.claims.architectures import cell_table, noisy_digits, single_cell
    from pointsman.supernet.scores import epsinas, score_networks
    from pointsman.supernet.scores.gradients import without_running_statistics

    truth = {genotype: test for genotype, (_, test) in cell_table(seed).items()}
    part = noisy_digits(seed).train

    def random_weights(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
        other = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1000)
            for module in other.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        rows = []
        for each in (network, other):
            with torch.no_grad():
                outputs = without_running_statistics(each)(x).flatten().double()
            rows.append((outputs - outputs.min()) / (outputs.max() - outputs.min()))
        return float((rows[0] - rows[1]).abs().mean() / torch.stack(rows).mean())

    table = score_networks(
        lambda genotype: single_cell(genotype, seed),
        truth,
        part.x[:INPUTS],
        part.y[:INPUTS],
        (epsinas, random_weights),
    )
    found = {}
    for name, agreement in table.agreement(truth).items():
        row = name.replace("_", " ")
        found[f"{row}: Spearman"] = agreement.spearman
        found[f"{row}: Kendall"] = agreement.kendall
        found[f"{row}: without a value"] = float(agreement.dropped)
    found["epsinas: Spearman beyond parameters"] = table.beyond_size(truth)["epsinas"]
    return {name: value for name, value in found.items() if not math.isnan(value)}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    own = abs(mean(measurements, "epsinas: Spearman"))
    return own > 0.3 and own > abs(mean(measurements, "random weights: Spearman"))


CLAIM = Claim(
    slug="epsinas",
    paper="Neural Architecture Search: Two Constant Shared Weights Initialisations",
    year=2023,
    arxiv="2302.04406",
    level="supernet",
    claim="The difference of a network's outputs under two constant weights, without labels, "
    "gradients or training, ranks networks by their accuracy after training.",
    baseline="The same difference between two random initialisations; parameters and FLOPs beside.",
    criterion="The size of Spearman's correlation with the accuracy of the 125 cells, in the mean "
    "over the seeds, is above 0.3 and above that of the same score on random weights.",
    quick=quick,
    full=full,
    decide=decide,
    composition="two constant initialisations · normalised difference of the outputs",
    entry="pointsman.supernet.scores.epsinas",
    key={
        "epsinas": "epsinas: Spearman",
        "random weights": "random weights: Spearman",
        "parameters": "parameters: Spearman",
        "beyond parameters": "epsinas: Spearman beyond parameters",
    },
)
