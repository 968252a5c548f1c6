"""DPSL: router probabilities are made to look like draws from a Dirichlet distribution.

Mirvakhabova et al., "Dirichlet-Prior Shaping: Guiding Expert Specialization in Upcycled MoEs"
(2025, arXiv 2510.01185).

If probabilities were drawn from Dirichlet(alpha), those of one expert would follow a Beta
distribution. The loss compares, for each expert, that distribution with the sorted probabilities of
the batch. Equal alphas below 1 ask for tokens that are sure of their expert and experts that are
equally used, which a load-balancing loss alone does not: it is content with tokens that want all
experts alike. The part is `balance.DirichletPrior`.

What was settled:
- The paper's exact distance was not found; the mean squared difference of the distributions is
  used. Probabilities are kept 1e-4 from 0 and 1 and the density at most 50.
- A linear router on 4,000 random vectors, 4 experts, trained for 400 updates of Adam by the loss
  alone, and once by the switch loss alone. Rows start small (0.02), so that tokens are unsure, as
  in an upcycled network. What is measured is what each loss asks for, not what it does to a task:
  the paper's gains on vision-language benchmarks are not within reach here.
- From rows of scores of unit variance, on a seed used for setting up, tokens were surer from the
  start, and entropy ended 0.27 nats below that under the switch loss instead of 0.5.
- "Distance" is the largest gap between the two distributions (Kolmogorov-Smirnov), the mean over
  experts; loads are of top-1.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

EXPERTS, WIDTH, TOKENS = 4, 16, 4000
ALPHA = 0.5
UPDATES = 400


def quick() -> None:
    """Draws of the distribution cost nearly nothing; a large alpha evens out, unequal ones skew."""
    import math

    import numpy as np
    import torch

    from pointsman.moe import Routing
    from pointsman.moe.balance import DirichletPrior
    from pointsman.moe.systems.balanced import dirichlet_shaped
    from pointsman.select import top_k

    def cost(draws: "Tensor", alpha: float) -> float:
        scores = draws.log()
        return float(DirichletPrior(alpha)(Routing(scores, top_k(scores, 2), scores)))

    drawn = torch.as_tensor(np.random.default_rng(0).dirichlet([ALPHA] * 4, 8000)).clamp(min=1e-30)
    uniform = torch.full((8000, 4), 0.25, dtype=torch.float64)
    must(cost(drawn, ALPHA) < 1e-3 < cost(uniform, ALPHA), "draws cost less than uniform")
    must(cost(uniform, 1000.0) < cost(drawn, 1000.0), "a large alpha prefers uniform")

    torch.manual_seed(0)
    x = torch.randn(512, WIDTH)
    even, unequal = (
        dirichlet_shaped(WIDTH, 4, alpha=100.0),
        dirichlet_shaped(WIDTH, 4, alpha=(0.2, 0.2, 0.2, 2.0)),
    )
    for layer in (even, unequal):
        torch.nn.init.normal_(layer.router.get_parameter("weight"), std=0.3)
        optimiser = torch.optim.Adam(layer.router.parameters(), 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            layer(x)[1].loss.backward()
            optimiser.step()
    shares = even.router(x).softmax(dim=1).detach()
    must(float(shares.mul(-shares.log()).sum(dim=1).mean()) > 0.95 * math.log(4), "near uniform")
    wanted = unequal.router(x).softmax(dim=1).mean(dim=0)
    must(int(wanted.argmax()) == 3, "the expert of largest alpha is wanted most")


def full(seed: int) -> Figures:
    """Distance to the distribution, entropy and loads, shaped and under the switch loss."""
    import torch

    from pointsman.moe import Routing
    from pointsman.moe.balance import DirichletPrior, switch
    from pointsman.select import top_k

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    start = torch.randn(EXPERTS, WIDTH, generator=generator) * 0.02
    found = _figures("before", x @ start.T)
    for row, term in (("shaped", DirichletPrior(ALPHA)), ("switch loss", switch)):
        weight, bias = start.clone().requires_grad_(), torch.zeros(EXPERTS, requires_grad=True)
        optimiser = torch.optim.Adam([weight, bias], 0.02)
        for _ in range(UPDATES):
            scores = x @ weight.T + bias
            loss = term(Routing(scores, top_k(scores, 2), scores))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        found |= _figures(row, (x @ weight.T + bias).detach())
    return found


def _figures(row: str, scores: "Tensor") -> dict[str, float]:
    import numpy as np
    from scipy import stats

    shares = scores.softmax(dim=1)
    marginal = stats.beta(ALPHA, (EXPERTS - 1) * ALPHA)
    columns = [shares[:, expert].numpy() for expert in range(EXPERTS)]
    distances = [float(stats.ks_1samp(column, marginal.cdf).statistic) for column in columns]
    load = scores.argmax(dim=1).bincount(minlength=EXPERTS).double()
    return {
        f"{row}: distance": float(np.mean(distances)),
        f"{row}: entropy in nats": float(-(shares * shares.log()).sum(dim=1).mean()),
        f"{row}: fullest over mean load": float(load.max() / load.mean()),
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    import math

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    shaped = of("shaped", "entropy in nats")
    return (
        of("shaped", "distance") < 0.05
        and shaped < math.log(EXPERTS) - 0.3
        and shaped < of("switch loss", "entropy in nats") - 0.3
        and of("shaped", "fullest over mean load") < 1.3
    )


CLAIM = Claim(
    slug="dpsl",
    paper="Dirichlet-Prior Shaping: Guiding Expert Specialization in Upcycled MoEs",
    year=2025,
    arxiv="2510.01185",
    level="moe",
    claim="Matching router probabilities to a Dirichlet distribution makes tokens sure of their "
    "expert and experts equally used at once, which a load-balancing loss does not.",
    baseline="The same router under a switch loss alone, and before training.",
    criterion="In the mean over the seeds: the largest gap to the wanted distribution is below "
    "0.05, the mean entropy of a token's probabilities is at least 0.3 nats below uniform and as "
    "far below that under the switch loss, and the fullest expert has less than 1.3 times the "
    "mean load.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.dirichlet_shaped",
    composition="linear router · top-k · gated feed-forward experts · Dirichlet prior",
    key={
        "distance": "shaped: distance",
        "entropy": "shaped: entropy in nats",
        "entropy, switch": "switch loss: entropy in nats",
        "load": "shaped: fullest over mean load",
    },
)
