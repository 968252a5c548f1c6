"""The sparsely-gated layer: noisy top-k gates, kept in balance by two losses.

Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer"
(2017, arXiv 1701.06538).

A token's scores are x W plus Gaussian noise of learned spread softplus(x V); the k best experts
answer, weighted by the softmax of their noisy scores. Noise is for training only. Two losses are
squared coefficients of variation: of the sums of gate values, and of the loads, where a token
counts for an expert by the chance that it has it under another draw of that expert's noise.

What was settled:
- The flat form; W and V start at zero, both losses weigh 0.1, as in the paper.
- Clean scores stand in the numerator of that chance and noisy ones in its threshold.
- 16 clusters of tokens with a linear map each, 8 experts, k = 2: more clusters than experts, so
  that no expert is idle by right. The layer without the losses is trained the same way.
- Experts of 16 hidden units. With 32, on a seed used for setting up, nothing was short: the losses
  then cost error (0.012 against 0.009) and the fullest expert had 1.23 times the mean.
- Loads are of fresh tokens in evaluation, without noise; those under noise, which the losses see,
  stand beside.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

CLUSTERS, EXPERTS, K = 16, 8, 2
WIDTH, HIDDEN = 16, 16
UPDATES = 1500


def quick() -> None:
    """The smooth load is the rate at which redrawing an expert's noise alone keeps it chosen."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.balance import chances, importance, load
    from pointsman.moe.systems.balanced import sparsely_gated

    torch.manual_seed(0)
    layer = sparsely_gated(6, 4, 5, k=2)
    x = torch.randn(64, 6)
    _, routing = layer(x)
    assert_close(layer.eval()(x)[1].scores, torch.zeros(64, 5))
    must(float(importance(layer(x[:0])[1]).detach()) == 0, "no loss without tokens")

    torch.nn.init.normal_(layer.router.get_parameter("weight"))
    torch.nn.init.normal_(layer.router.get_parameter("noise_weight"))
    _, routing = layer.train()(x[:1])
    assert routing.spread is not None
    redrawn = routing.clean + routing.spread * torch.randn(100_000, 5)
    for expert in range(5):
        scores = routing.scores.repeat(100_000, 1)
        scores[:, expert] = redrawn[:, expert]
        rate = (scores.topk(2, dim=1).indices == expert).any(dim=1).double().mean()
        assert_close(chances(routing)[0, expert].double(), rate, rtol=0, atol=0.006)
    (slope,) = torch.autograd.grad(load(routing), layer.router.get_parameter("noise_weight"))
    must(bool(slope.any()), "the load loss moves the spread of the noise")


def full(seed: int) -> Figures:
    """Balance and error with both losses and without, on the same tokens."""
    import torch

    from pointsman.claims import worlds
    from pointsman.moe.balance.common import squared_variation
    from pointsman.moe.systems.balanced import sparsely_gated

    mixture = worlds.mixture(seed, clusters=CLUSTERS, width=WIDTH)
    found: dict[str, float] = {}
    for row, weight in (("with losses", 0.1), ("without", 0.0)):
        torch.manual_seed(seed)
        layer = sparsely_gated(WIDTH, HIDDEN, EXPERTS, K, weight=weight)
        worlds.regress(layer, mixture, seed=seed, updates=UPDATES)
        x = mixture.draw(8192, seed=seed + 10_000).x
        served = layer(x)[1].route.load()
        with torch.no_grad():
            route = layer.train()(x)[1].route
        layer.eval()
        amount = torch.zeros(EXPERTS).index_add(0, route.branches, route.weights)
        found |= {
            f"{row}: fullest over mean load": worlds.max_violation(served) + 1,
            f"{row}: the same under noise": worlds.max_violation(route.load()) + 1,
            f"{row}: variation of gate values": float(squared_variation(amount)) ** 0.5,
            f"{row}: relative error": worlds.relative_error(layer, mixture, seed=seed),
        }
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    load = of("with losses", "fullest over mean load")
    return (
        load < 1.15
        and load < of("without", "fullest over mean load")
        and of("with losses", "relative error") <= of("without", "relative error")
    )


CLAIM = Claim(
    slug="sparsely-gated-moe",
    paper="Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    year=2017,
    arxiv="1701.06538",
    level="moe",
    claim="With an importance and a load loss, noisy top-k gating uses its experts equally, and "
    "loses nothing by it.",
    baseline="The same layer, noise and training without the two losses.",
    criterion="On fresh tokens and in the mean over the seeds: the fullest expert has less than "
    "1.15 times the mean load with the losses, and less than without them, and the error is not "
    "higher than without them.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.sparsely_gated",
    composition="noisy linear router · top-k · ReLU feed-forward experts · importance and load "
    "losses",
    key={
        "load, with": "with losses: fullest over mean load",
        "load, without": "without: fullest over mean load",
        "error, with": "with losses: relative error",
        "error, without": "without: relative error",
    },
)
