"""MixER: a gate over families of systems, fitted by clustering and least squares.

Nzoyem et al., "Towards Foundational Models for Dynamical System Reconstruction: Hierarchical
Meta-Learning via Mixture of Experts" (2025, arXiv 2502.05335).

Data come from environments, each with a learned context, and environments from a few families. A
gate reads the context and sends an environment to one expert, outright. It is not trained by
gradients: every few steps contexts are clustered by K-means, clusters and experts are matched by
the median loss, and the gate is the least-squares fit to that matching. The part is
`learn.LeastSquaresGate`.

What was settled:
- Instead of differential equations, an environment e of family f maps x by its family's matrix plus
  a small change of its own, a function linear in x with two numbers that are the environment's own:
  y = A_f x + a_e B_f x + b_e C_f x. Eight points of each are seen.
- Experts are feed-forwards that read context and x. Contexts start as small random numbers and are
  learned with the experts, all by Adam at once: the paper alternates and adds a proximal term.
- The gradient-trained gate reads the same contexts, and weighs its expert by its probability,
  without which nothing would teach it; it gets the usual balancing loss.
- Purity is the share of environments that share their expert with most of their family, counted by
  the best one-to-one matching of experts and families.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.moe import MoE

FAMILIES, ENVIRONMENTS, CONTEXT, WIDTH, HIDDEN = 4, 12, 6, 4, 32
UPDATES, EVERY, SEEN = 600, 5, 8


def quick() -> None:
    """Where clusters are the true groups, the fitted gate sends every group to its best expert."""
    import torch

    from pointsman.learn import LeastSquaresGate, k_means

    sound = right = 0
    for seed in range(60):
        torch.manual_seed(seed)
        group = torch.arange(3).repeat_interleave(10)
        contexts = 3 * torch.randn(3, 8)[group] + 0.3 * torch.randn(30, 8)
        best = torch.randperm(3)
        losses = 1.0 - 0.5 * torch.nn.functional.one_hot(best[group], 3)
        gate = LeastSquaresGate(8, 3)
        before = gate.weight.clone()
        if not gate.fit(contexts, losses):
            must(torch.equal(gate.weight, before), "without sound clusters the gate stays")
            continue
        members = k_means(contexts, gate.centres).members
        pairs = {(int(m), int(g)) for m, g in zip(members, group, strict=True)}
        if len(pairs) == 3:
            sound += 1
            right += int(torch.equal(gate(contexts).argmax(dim=1), best[group]))
    must(sound >= 10, f"clusters are the groups now and then, got {sound} of 60")
    must(right == sound, f"then the gate is right each time, got {right} of {sound}")
    must(not list(gate.parameters()), "no gradient reaches the gate")


def full(seed: int) -> Figures:
    """Error on unseen points of the environments and purity of the routing, by either gate."""
    found = {}
    for name in ("fitted gate", "trained gate"):
        error, purity = _trained(name == "fitted gate", seed)
        found[f"{name}: error"], found[f"{name}: purity"] = error, purity
    return found


def _trained(fitted: bool, seed: int) -> tuple[float, float]:
    import torch
    from torch.nn.functional import mse_loss

    from pointsman.learn import LeastSquaresGate

    torch.manual_seed(seed)
    world = _Families(seed)
    layer = _layer(fitted)
    contexts = torch.nn.Parameter(0.01 * torch.randn(FAMILIES * ENVIRONMENTS, CONTEXT))
    optimiser = torch.optim.Adam([*layer.parameters(), contexts], 3e-3)
    x, y = world.points(SEEN, 0)
    for update in range(UPDATES):
        if fitted and update % EVERY == 0:
            assert isinstance(layer.router, LeastSquaresGate)
            layer.router.fit(contexts.detach(), _losses(layer, contexts.detach(), x, y))
        answer, routing = layer(_rows(contexts, x))
        loss = mse_loss(answer, y) + routing.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        x, y = world.points(64, 1)
        answer, routing = layer(_rows(contexts, x))
        error = float(mse_loss(answer, y) / y.var())
        first = routing.route.branches.reshape(len(contexts), -1)[:, 0]
    return error, _purity(first)


class _Families:
    """Matrices of the families and numbers of the environments."""

    def __init__(self, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        count = FAMILIES * ENVIRONMENTS
        family = torch.arange(FAMILIES).repeat_interleave(ENVIRONMENTS)
        maps = torch.randn(FAMILIES, 3, WIDTH, WIDTH, generator=generator) / WIDTH**0.5
        own = torch.cat([torch.ones(count, 1), 0.3 * torch.randn(count, 2, generator=generator)], 1)
        self.maps = torch.einsum("mk,mkij->mij", own, maps[family])
        self.seed = seed

    def points(self, count: int, part: int) -> "tuple[torch.Tensor, torch.Tensor]":
        """(M * count, D) points, those of one environment together, and where they are mapped."""
        import torch

        generator = torch.Generator().manual_seed(1000 * self.seed + part + 1)
        x = torch.randn(len(self.maps), count, WIDTH, generator=generator)
        return x.flatten(0, 1), (x @ self.maps.transpose(1, 2)).flatten(0, 1)


def _layer(fitted: bool) -> "MoE":
    from functools import partial

    from torch import nn

    from pointsman.moe import MoE
    from pointsman.moe.balance import switch
    from pointsman.moe.systems.estimated import mixer
    from pointsman.select import top_k

    layer = mixer(CONTEXT, CONTEXT + WIDTH, HIDDEN, FAMILIES, out=WIDTH)
    if fitted:
        return layer

    class OfContext(nn.Linear):
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            return super().forward(x[:, :CONTEXT])

    weighed = partial(top_k, k=1, renormalize=False)
    gate = OfContext(CONTEXT, FAMILIES)
    return MoE(gate, weighed, layer.experts, balance=((0.01, switch),))


def _rows(contexts: "torch.Tensor", x: "torch.Tensor") -> "torch.Tensor":
    import torch

    each = len(x) // len(contexts)
    return torch.cat([contexts.repeat_interleave(each, dim=0), x], dim=1)


def _losses(
    layer: "MoE", contexts: "torch.Tensor", x: "torch.Tensor", y: "torch.Tensor"
) -> "torch.Tensor":
    """(M, E): what every expert loses on every environment."""
    import torch

    from pointsman.moe.competition import every_answer

    with torch.no_grad():
        answers = every_answer(layer.experts, _rows(contexts, x))
        loss = (answers - y[:, None]).square().mean(dim=2)
        return loss.reshape(len(contexts), -1, loss.shape[1]).mean(dim=1)


def _purity(first: "torch.Tensor") -> float:
    import torch

    from pointsman.claims.worlds import routing_accuracy
    from pointsman.route import Route

    family = torch.arange(FAMILIES).repeat_interleave(ENVIRONMENTS)
    return routing_accuracy(Route.from_indices(first[:, None], num_branches=FAMILIES), family)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    purer = mean(measurements, "fitted gate: purity") - mean(measurements, "trained gate: purity")
    error = mean(measurements, "fitted gate: error")
    return purer >= 0.1 and error <= 0.9 * mean(measurements, "trained gate: error")


CLAIM = Claim(
    slug="mixer",
    paper="Towards Foundational Models for Dynamical System Reconstruction: Hierarchical "
    "Meta-Learning via Mixture of Experts",
    year=2025,
    arxiv="2502.05335",
    level="moe",
    claim="A gate that is fitted by clustering contexts and least squares sends environments to "
    "experts by family, where a gate trained by gradients is slow and in conflict.",
    baseline="The same contexts and experts with a linear gate trained by gradients, with a "
    "balancing loss and equal updates.",
    criterion="After equal updates, in the mean over the seeds: purity of the routing by family is "
    "at least 10 points higher, and the relative error on unseen points of the environments at "
    "most 0.9 times that with the gradient-trained gate.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.mixer",
    composition="least-squares gate of contexts · top-1 at weight one · feed-forward experts",
    key={
        "error": "fitted gate: error",
        "trained": "trained gate: error",
        "purity": "fitted gate: purity",
        "trained purity": "trained gate: purity",
    },
)
