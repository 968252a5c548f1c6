"""SMEAR: an input runs through one expert whose weights are the routed mean of all experts'.

Muqeeth et al., "Soft Merging of Experts with Adaptive Routing" (2023, arXiv 2306.03745).

A router reads the mean of a sequence's tokens and gives probabilities; every parameter is averaged
with them, and the sequence runs through that one expert. The choice stays differentiable at nearly
the price of one expert. The part is `moe.merging.SoftMerging`.

What was settled:
- Four tasks, each a layer of tanh units with a linear map of its own. A sequence has six tokens, of
  which the first is a noisy cue to the task; the five others are to be mapped. Experts have eight
  hidden units, enough for one task.
- Hard routing, the baseline, chooses one expert for the whole sequence too: a drawn one with the
  straight-through Gumbel gradient, the best one in evaluation; and the best one always, weighed by
  its probability.
- No balancing and no dropout of experts for any; equal start, data and updates.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

TASKS, EXPERTS, WIDTH, HIDDEN, PLACES = 4, 4, 8, 8, 6
UPDATES, BATCH = 500, 128


def quick() -> None:
    """Merged weights are means, one-hot probabilities give that expert, gradients reach all."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe import FeedForwardExperts
    from pointsman.moe.routers.linear import LinearRouter
    from pointsman.moe.systems.estimated import smear

    torch.manual_seed(0)
    layer = smear(WIDTH, HIDDEN, EXPERTS, dropout=0.0).double()
    x = torch.randn(5, PLACES, WIDTH, dtype=torch.float64)
    y, routing = layer(x)
    bank, weights = layer.experts, routing.route.to_dense()
    assert isinstance(bank, FeedForwardExperts)
    assert isinstance(layer.router, LinearRouter)
    assert bank.up_bias_EF is not None
    must(routing.route.num_inputs == 5, "what is routed is the sequence")
    up = torch.einsum("ne,efd->nfd", weights, bank.up_EFD)
    bias = weights @ bank.up_bias_EF
    down = torch.einsum("ne,edf->ndf", weights, bank.down_EDF)
    hidden = torch.nn.functional.silu(x @ up.transpose(1, 2) + bias[:, None])
    assert_close(y, hidden @ down.transpose(1, 2))
    y.square().sum().backward()
    for name, weight in layer.named_parameters():
        must(weight.grad is not None and bool((weight.grad != 0).any()), f"{name} learns")
    with torch.no_grad():
        layer.router.weight.mul_(1e6)
        y, routing = layer(x)
        for n, e in enumerate(routing.route.answered_by().tolist()):
            alone = bank(x[n], torch.tensor([0] * (e + 1) + [PLACES] * (EXPERTS - e)))
            assert_close(y[n], alone, rtol=1e-6, atol=1e-6)


def full(seed: int) -> Figures:
    """Mean squared error on fresh sequences: merged, drawn, best, and a single expert."""
    import torch
    from torch.nn.functional import mse_loss

    found = {}
    for name in ("merged", "Gumbel", "top-1", "one expert"):
        torch.manual_seed(seed)
        module = _made(name)
        optimiser = torch.optim.Adam(module.parameters(), 1e-2)
        for update in range(UPDATES):
            x, y = _sequences(BATCH, seed, update)
            loss = mse_loss(module(x)[0][:, 1:], y)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        module.eval()
        with torch.no_grad():
            x, y = _sequences(2048, seed, UPDATES)
            found[f"{name}: error"] = float(mse_loss(module(x)[0][:, 1:], y))
    return found


def _made(name: str) -> "torch.nn.Module":
    from functools import partial

    from pointsman.moe import MoE
    from pointsman.moe.balance import ByMode
    from pointsman.moe.systems.estimated import smear
    from pointsman.select import gumbel, top_k

    layer = smear(WIDTH, HIDDEN, 1 if name == "one expert" else EXPERTS, dropout=0.0)
    if name in ("merged", "one expert"):
        return layer
    best = partial(top_k, k=1, renormalize=False)
    drawn = ByMode(partial(gumbel, k=1), partial(top_k, k=1))
    router, experts = _of_sequences(layer.router, layer.experts)
    return MoE(router, best if name == "top-1" else drawn, experts, input_dims=2)


def _of_sequences(
    router: "torch.nn.Module", experts: "torch.nn.Module"
) -> "tuple[torch.nn.Module, torch.nn.Module]":
    """The same parts for whole sequences (N, S, D) as what is routed."""
    import torch

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = router

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.router(x.mean(dim=1))
            return scores

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.num_experts = experts, EXPERTS

        def forward(self, rows: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            answers: torch.Tensor = self.experts(rows.flatten(0, 1), offsets * PLACES)
            return answers.reshape(*rows.shape[:2], -1)

    return Mean(), Whole()


def _sequences(count: int, seed: int, draw: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(count, 6, D) sequences, a cue first, and what the other five tokens are mapped to."""
    import torch

    fixed = torch.Generator().manual_seed(seed)
    cues = 2.0 * torch.randn(TASKS, WIDTH, generator=fixed)
    into = torch.randn(TASKS, WIDTH, HIDDEN, generator=fixed) / WIDTH**0.5
    out = torch.randn(TASKS, HIDDEN, WIDTH, generator=fixed) / HIDDEN**0.5
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + draw)
    task = torch.randint(TASKS, (count,), generator=generator)
    cue = cues[task] + torch.randn(count, WIDTH, generator=generator)
    x = torch.randn(count, PLACES - 1, WIDTH, generator=generator)
    return torch.cat([cue[:, None], x], dim=1), (x @ into[task]).tanh() @ out[task]


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, "merged: error")
    return (
        ours <= 1.05 * mean(measurements, "Gumbel: error")
        and ours < 0.5 * mean(measurements, "one expert: error")
        and max(f["merged: error"] for f in measurements)
        < max(f["top-1: error"] for f in measurements)
    )


CLAIM = Claim(
    slug="smear",
    paper="Soft Merging of Experts with Adaptive Routing",
    year=2023,
    arxiv="2306.03745",
    level="moe",
    claim="Merging the experts' weights for every input trains routing as well as estimates of the "
    "gradient through a hard choice, or better, at the price of one expert.",
    baseline="The same experts and router with one hard choice a sequence: straight-through "
    "Gumbel, and the best weighed by its probability; and a single expert.",
    criterion="After equal updates: the merged error is at most 1.05 times that of "
    "straight-through Gumbel and below half that of one expert, both in the mean over the seeds; "
    "and its worst seed is better than the worst seed of top-1.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.smear",
    composition="normalised linear router on the mean of a sequence · softmax · feed-forward "
    "experts merged by weight",
    key={
        "merged": "merged: error",
        "Gumbel": "Gumbel: error",
        "top-1": "top-1: error",
        "one expert": "one expert: error",
    },
    note="Merging has the lowest error on every seed; what it misses is half the error of one "
    "expert, by a little.",
)
