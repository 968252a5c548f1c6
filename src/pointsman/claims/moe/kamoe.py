"""KAMoE: a gated residual network of Kolmogorov-Arnold layers as the gate of a dense mixture.

Inzirillo and Genet, "A Gated Residual Kolmogorov-Arnold Networks for Mixtures of Experts" (2024,
arXiv 2409.15161).

Every expert runs, each under a weight sigmoid(GRKAN(x)), which need not sum to one. GRKAN is the
gated residual network (GRN) of earlier work with its two dense layers replaced by layers whose
edges carry learned splines. The part is `moe.routers.KANRouter`, the composition
`moe.systems.routed.kamoe`; the GRN is the same router with another `inner`.

What was settled:
- The paper's data are crypto volumes and house prices; here it is a regression over 6 inputs in
  [-1, 1] with four regimes, each with a linear target: sin(3 a x) > 0 and x_0 > 0. The first border
  is a curve that one dense layer cannot draw, so the gate matters.
- The gate's first layer is as wide as an expert's output in the paper. That is one number here, so
  it is as wide as the input instead, in either gate.
- Cubic splines over 5 steps of [-1, 1]; 4 experts of 8 hidden units; dropout 0.1 in either gate.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, must

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUTS, EXPERTS, HIDDEN, UPDATES = 6, 4, 8, 1500
ROWS = ("GRKAN gate", "GRN gate", "one expert")


def quick() -> None:
    """Splines sum to one inside the grid; without them the gate is a dense gated network."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe.routers import KANLayer, KANRouter

    torch.manual_seed(0)
    layer = KANLayer(3, 4, activation=nn.Identity()).double()
    inside = torch.linspace(-1, 0.999, 50, dtype=torch.float64)
    assert_close(layer.basis(inside).sum(dim=1), torch.ones_like(inside))
    must(not layer.basis(torch.tensor([-3.0, 3.0]).double()).any(), "none reaches far outside")
    with torch.no_grad():
        layer.coefficients.zero_()
    x = torch.randn(9, 3, dtype=torch.float64)
    assert_close(layer(x), x @ layer.base.T)

    router = KANRouter(INPUTS, EXPERTS, hidden=5).double().eval()
    enter, leave = nn.Linear(5, 4, bias=False), nn.Linear(4, 4, bias=False)
    dense = nn.Sequential(enter, nn.ELU(), leave)
    with torch.no_grad():
        for plain, spline in zip((enter, leave), _linear_layers(router), strict=True):
            plain.weight.copy_(spline.base)
    other = KANRouter(INPUTS, EXPERTS, hidden=5, inner=dense).double().eval()
    rest = {n: w for n, w in router.state_dict().items() if not n.startswith("inner")}
    other.load_state_dict(rest, strict=False)
    x = torch.randn(20, INPUTS, dtype=torch.float64)
    assert_close(router(x), other(x))


def _linear_layers(router: Any) -> "list[Any]":
    """The two layers of a gate without splines: base terms of nothing and of ELU."""
    import torch
    from torch.nn import functional

    first, second = router.inner
    first.activation, second.activation = torch.nn.Identity(), functional.elu
    first.coefficients.zero_()
    second.coefficients.zero_()
    return [first, second]


def full(seed: int) -> Figures:
    """Share of variance explained on fresh inputs, by gate, and by one expert alone."""
    import torch
    from torch.nn import functional

    world, found = _world(seed), {}
    for row in ROWS:
        torch.manual_seed(seed)
        model = _model(row)
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(UPDATES):
            x, y = world(128, generator)
            optimiser.zero_grad()
            functional.mse_loss(_answer(model, x), y).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        model.eval()
        x, y = world(4096, torch.Generator().manual_seed(10_000 + seed))
        with torch.no_grad():
            error = functional.mse_loss(_answer(model, x), y) / y.var()
        found[f"{row}: R2"] = 1 - float(error)
    return found


def _world(seed: int) -> Any:
    """Draws inputs (T, 6) and targets (T, 1): a linear target in each of four regimes."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(INPUTS, generator=generator)
    maps = torch.randn(4, INPUTS, generator=generator)

    def draw(count: int, generator: torch.Generator) -> "tuple[Tensor, Tensor]":
        x = 2 * torch.rand(count, INPUTS, generator=generator) - 1
        regime = 2 * ((3 * x @ direction).sin() > 0).long() + (x[:, 0] > 0).long()
        return x, (x * maps[regime]).sum(dim=1, keepdim=True)

    return draw


def _model(row: str) -> "nn.Module":
    from torch import nn

    from pointsman.moe.routers import KANRouter
    from pointsman.moe.systems.routed import kamoe

    if row == "one expert":
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
    layer = kamoe(INPUTS, HIDDEN, EXPERTS, out=1)
    dense: nn.Module | None = None
    if row == "GRN gate":
        dense = nn.Sequential(nn.Linear(INPUTS, EXPERTS), nn.ELU(), nn.Linear(EXPERTS, EXPERTS))
    layer.router = KANRouter(INPUTS, EXPERTS, hidden=INPUTS, inner=dense)
    return layer


def _answer(model: "nn.Module", x: "Tensor") -> "Tensor":
    found: Any = model(x)
    answer: Tensor = found[0] if isinstance(found, tuple) else found
    return answer


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def wins(row: str, other: str) -> int:
        return sum(found[f"{row}: R2"] >= found[f"{other}: R2"] for found in measurements)

    most = len(measurements) // 2 + 1
    return wins("GRKAN gate", "GRN gate") >= most and wins("GRKAN gate", "one expert") >= most


CLAIM = Claim(
    slug="kamoe",
    paper="A Gated Residual Kolmogorov-Arnold Networks for Mixtures of Experts",
    year=2024,
    arxiv="2409.15161",
    level="moe",
    claim="As the gate of a dense mixture, a gated residual network with Kolmogorov-Arnold layers "
    "does better than one with dense layers.",
    baseline="The same four experts under the usual gated residual network; and one expert alone.",
    criterion="On regression with four regimes, after equal updates, in most seeds: the variance "
    "explained on fresh inputs is at least that under the usual gate, and at least that of one "
    "expert.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.kamoe",
    composition="Kolmogorov-Arnold router · all experts, sigmoid weights · feed-forward experts",
    key={
        "GRKAN gate": "GRKAN gate: R2",
        "GRN gate": "GRN gate: R2",
        "one expert": "one expert: R2",
    },
)
