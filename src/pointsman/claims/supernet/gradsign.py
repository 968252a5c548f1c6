"""GradSign: networks whose inputs agree on the signs of the gradients at the start train better.

Zhang & Jia, "GradSign: Model Performance Inference with Theoretical Insights" (2021, arXiv
2110.08616).

At random initialisation the gradient of each input of one batch is taken by itself; the score is
the sum over the weights of the absolute sum of the gradients' signs. Where inputs agree, their
optima lie near each other, which bounds the loss after training. The part is
`supernet.scores.gradsign`.

What was settled:
- One batch of 64 inputs; initialisation as in the table of cells (same seed); matrices and kernels
  only; normalisation sees one input at a time, as in the authors' loop.
- Correlation is Spearman's with the test accuracy of the 125 cells trained alone. The interval is
  the percentile bootstrap over cells, 1,000 resamples, 95%.
- "Beyond parameters" is the partial correlation given the rank of the number of parameters.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

INPUTS, RESAMPLES = 64, 1000
RIVALS = ("grad_norm", "snip", "synflow", "jacob_cov", "naswot")


def quick() -> None:
    """Between 0 and inputs x weights, the latter for equal inputs; the loss's scale is nothing."""
    import torch
    from torch.nn import functional

    from pointsman.claims.architectures import noisy_digits, single_cell
    from pointsman.supernet.scores import gradsign

    net, data = single_cell((3, 2, 1), 0), noisy_digits(0).train
    x, y = data.x[:16], data.y[:16]
    score = gradsign(net, x, y)
    weights = sum(weight.numel() for weight in net.parameters() if weight.ndim > 1)
    must(0 <= score <= 16 * weights, "from 0 to inputs x weights")
    scaled = gradsign(net, x, y, loss=lambda out, label: 7 * functional.cross_entropy(out, label))
    must(score == scaled, "the scale of the loss does not matter")
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 10)
    same = gradsign(linear, x[:1].repeat(16, 1) + 0.5, y[:1].repeat(16))
    must(same == 16 * 640, f"equal inputs agree on every weight, got {same}")
    by_hand = torch.zeros(10, 64)
    for at in range(16):
        loss = functional.cross_entropy(linear(x[at : at + 1]), y[at : at + 1])
        by_hand += torch.autograd.grad(loss, linear.weight)[0].sign()
    must(gradsign(linear, x, y) == float(by_hand.abs().sum()), "one gradient for each input")


def full(seed: int) -> Figures:
    """Rank correlation of every zero-cost score with truth, parameters and FLOPs beside."""
    import math

    from pointsman.claims.architectures import cell_table, noisy_digits, single_cell
    from pointsman.supernet.scores import score_networks

    truth = {genotype: test for genotype, (_, test) in cell_table(seed).items()}
    part = noisy_digits(seed).train
    table = score_networks(
        lambda genotype: single_cell(genotype, seed), truth, part.x[:INPUTS], part.y[:INPUTS]
    )
    found = {}
    for name, agreement in table.agreement(truth, resamples=RESAMPLES).items():
        found[f"{name}: Spearman"] = agreement.spearman
        found[f"{name}: Kendall"] = agreement.kendall
        found[f"{name}: low"], found[f"{name}: high"] = agreement.low, agreement.high
        found[f"{name}: without a value"] = float(agreement.dropped)
    for name, value in table.beyond_size(truth).items():
        found[f"{name}: Spearman beyond parameters"] = value
    # Not a number where a score follows from the parameters, as FLOPs do here.
    return {name: value for name, value in found.items() if math.isfinite(value)}


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    own = mean(measurements, "gradsign: Spearman")
    return all(figures["gradsign: low"] > 0 for figures in measurements) and all(
        own > mean(measurements, f"{name}: Spearman") for name in RIVALS
    )


CLAIM = Claim(
    slug="gradsign",
    paper="GradSign: Model Performance Inference with Theoretical Insights",
    year=2021,
    arxiv="2110.08616",
    level="supernet",
    claim="Agreement of the inputs on the signs of the gradients at initialisation ranks networks "
    "by their accuracy after training, better than other zero-cost scores.",
    baseline="Gradient norm, SNIP, SynFlow, Jacobian covariance and NASWOT on the same batch; "
    "parameters and FLOPs beside.",
    criterion="Spearman's correlation with the accuracy of the 125 cells is above 0 with 95% "
    "confidence (bootstrap) for every seed, and in the mean over the seeds higher than that of "
    "each of the five other scores.",
    quick=quick,
    full=full,
    decide=decide,
    composition="gradient of each input · agreement of signs",
    entry="pointsman.supernet.scores.gradsign",
    key={
        "gradsign": "gradsign: Spearman",
        "gradient norm": "grad_norm: Spearman",
        "parameters": "parameters: Spearman",
        "beyond parameters": "gradsign: Spearman beyond parameters",
    },
    note="SynFlow, Jacobian covariance and NASWOT have no value for 7 to 9 of the cells, which are "
    "left out of their correlations.",
)
