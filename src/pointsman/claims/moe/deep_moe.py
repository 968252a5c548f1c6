"""Two dense mixtures in a row: the first learns where, the second learns what.

Eigen et al., "Learning Factored Representations in a Deep Mixture of Experts" (2013, arXiv
1312.4314).

Each layer is a softmax mixture of all its experts, its gate a small network on the layer's input,
so every pair of experts is a path of its own. In the first third of training a running total keeps
any expert from getting far ahead of the mean. The composition is `systems.factored.deep_moe`.

What was settled:
- Digits of 8x8 pixels at one of the four corners of a 14x14 canvas take the place of jittered
  MNIST: the corner is "where", the digit "what". Gate and class, or gate and corner, are compared
  by the mutual information of the gate's largest expert with them, on every test digit at every
  corner.
- 4 and 4 experts of 20 units, gates of 50 and 20; 2000 Adam steps. The margin of the running
  total was not found; 20 tokens of batches of 128, and the learning rate, were chosen on seeds 100
  and 101. That was done twice: after the first choice, a rate of 1e-3 picked on seed 100 alone, the
  criterion failed (one of three seeds used a single expert of the second layer).
- The mixture without the constraint stands beside it; it is reported and decides nothing. That one
  network for each of the 16 combinations would be no better was not measured.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

EXPERTS = 4
SIZES = (196, 20, 20)
GATES = (50, 20)
UPDATES, BATCH, RATE = 2000, 128, 3e-3
MARGIN = 20.0  # tokens


def quick() -> None:
    """Layers are dense mixtures, no total runs further ahead than the margin and one step."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe import MoE, Routing
    from pointsman.moe.systems.factored import EvenShares, RectifiedLinearExperts, deep_moe

    torch.manual_seed(0)
    layers = deep_moe((6, 5, 3), 4, (8, 8))
    x = torch.randn(7, 6)
    for layer in layers:
        assert isinstance(layer, MoE)
        bank = layer.experts
        assert isinstance(bank, RectifiedLinearExperts)
        assert bank.bias_EO is not None
        weights = torch.softmax(layer.router(x), dim=1)
        every = torch.einsum("td,eod->teo", x, bank.weight_EOD) + bank.bias_EO
        y, routing = layer(x)
        assert_close(y, torch.einsum("te,teo->to", weights, every.relu()))
        must(len(routing.route) == 28, "every expert runs on every token")
        x = y
    select, tokens = EvenShares(4, margin=10.0), 16
    scores = torch.tensor([3.0, 1.0, 0.0, 0.0]).repeat(tokens, 1)
    for _ in range(100):
        route = select(scores)
        assert_close(route.to_dense().sum(1), torch.ones(tokens))
        select.after_step([Routing(scores, route, scores)])
        ahead = select.total_E - select.total_E.mean()
        must(float(ahead.max()) <= 10 + tokens, "no expert runs away")
    must(float(select.total_E.min()) > 100, "the least liked expert gets its share")
    select.eval()
    assert_close(select(scores).to_dense(), scores.softmax(1))


def full(seed: int) -> Figures:
    """What each gate tells about corner and class, in bits, and the accuracies."""
    import torch

    from pointsman.claims import testbeds

    data = testbeds.digits(seed)
    found = {}
    x, y, corner = _everywhere(data.test.x, data.test.y)
    for name, margin in (("constrained", MARGIN), ("free", float("inf"))):
        network = _train(seed, margin, data.train)
        with torch.no_grad():
            logits, gates = _run(network, x)
        for at, gate in enumerate(gates, start=1):
            found[f"{name}, gate {at}: bits about corner"] = _bits(gate, corner)
            found[f"{name}, gate {at}: bits about class"] = _bits(gate, y)
        found[f"{name}: paths used"] = float(
            (gates[0] * EXPERTS + gates[1]).bincount().count_nonzero()
        )
        found[f"{name}: accuracy"] = testbeds.accuracy(logits, y)
    return found


def _train(seed: int, margin: float, part: "object") -> "nn.ModuleList":
    import torch
    from torch import nn

    from pointsman.moe import MoE
    from pointsman.moe.systems.factored import EvenShares, deep_moe

    torch.manual_seed(seed)
    network = deep_moe(SIZES, EXPERTS, GATES, margin=margin)
    network.append(nn.Linear(SIZES[-1], 10))
    routings = {}

    def forward(x: "Tensor") -> "Tensor":
        for layer in network[:-1]:
            x, routings[layer] = layer(x)
        return network[-1](x)  # type: ignore[no-any-return]

    def after(update: int) -> None:
        for layer, routing in routings.items():
            assert isinstance(layer, MoE)
            assert isinstance(layer.select, EvenShares)
            layer.after_step([routing])
            layer.select.constrained = update < UPDATES // 3

    _fit(network, forward, seed, part, after)
    return network


def _fit(
    module: "nn.Module", forward: object, seed: int, part: object, after: object = None
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from pointsman.claims.testbeds import Part

    assert isinstance(part, Part)
    assert callable(forward)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), RATE, fused=True)
    module.train()
    for update in range(UPDATES):
        rows = torch.randint(len(part.x), (BATCH,), generator=generator)
        corner = torch.randint(4, (BATCH,), generator=generator)
        loss = cross_entropy(forward(_placed(part.x[rows], corner)), part.y[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if callable(after):
            after(update)
    module.eval()


def _run(network: "nn.ModuleList", x: "Tensor") -> "tuple[Tensor, list[Tensor]]":
    gates = []
    for layer in network[:-1]:
        x, routing = layer(x)
        gates.append(routing.scores.argmax(dim=1))
    return network[-1](x), gates


def _placed(x_ND: "Tensor", corner_N: "Tensor") -> "Tensor":
    """Digits (N, 64) at a corner each of an empty canvas (N, 196)."""
    import torch

    every = torch.zeros(4, len(x_ND), 14, 14)
    digit = x_ND.reshape(-1, 8, 8)
    for at, (top, left) in enumerate(((0, 0), (0, 6), (6, 0), (6, 6))):
        every[at, :, top : top + 8, left : left + 8] = digit
    return every[corner_N, torch.arange(len(x_ND))].flatten(1)


def _everywhere(x: "Tensor", y: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """Every digit at every corner, its class, and the corner."""
    import torch

    corner = torch.arange(4).repeat_interleave(len(x))
    return _placed(x.repeat(4, 1), corner), y.repeat(4), corner


def _bits(one: "Tensor", other: "Tensor") -> float:
    """Mutual information of two labellings, from their joint counts."""
    import torch

    joint = torch.zeros(int(one.max()) + 1, int(other.max()) + 1, dtype=torch.float64)
    joint.index_put_((one, other), torch.ones(len(one), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    terms = joint * (joint / independent.clamp_min(1e-300)).clamp_min(1e-300).log2()
    return max(float(terms.sum()), 0.0)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def bits(gate: int, about: str) -> float:
        return mean(measurements, f"constrained, gate {gate}: bits about {about}")

    what = bits(2, "class") > 2 * bits(1, "class")
    where = bits(1, "corner") > 10 * bits(2, "corner")
    return what and where and all(f["constrained: paths used"] == EXPERTS**2 for f in measurements)


CLAIM = Claim(
    slug="deep-moe",
    paper="Learning Factored Representations in a Deep Mixture of Experts",
    year=2013,
    arxiv="1312.4314",
    level="moe",
    claim="In two stacked mixtures the first gate learns where a digit is and the second what it "
    "is, and all combinations of their experts are used.",
    baseline="The two gates against each other; beside them the same network without the running "
    "total.",
    criterion="In the mean over the seeds, the second gate tells more than twice as many bits "
    "about the class as the first, and the first more than ten times as many about the corner as "
    "the second; and in every seed all 16 pairs of experts lead on some test input.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.factored.deep_moe",
    composition="two-layer gates · all experts, softmax, running totals at first · one-layer "
    "experts, two layers of them",
    key={
        "bits about corner, gate 1": "constrained, gate 1: bits about corner",
        "gate 2": "constrained, gate 2: bits about corner",
        "bits about class, gate 1": "constrained, gate 1: bits about class",
        "gate 2 ": "constrained, gate 2: bits about class",
    },
    note="Both ratios hold, what and where are told apart; it fails by one pair of experts of 16 "
    "that led on no test input in one seed. Without the running totals half of the pairs are used.",
)
