"""Mixture of rank (MoRA): rank-1 pieces score themselves, old ones stay on offer, frozen.

Lu et al., "Little By Little: Continual Learning via Self-Activated Sparse Mixture-of-Rank Adaptive
Learning" (2025, arXiv 2506.21035).

A low-rank update is a sum of pieces b_i a_i^T. Every task adds some; all older ones are frozen. A
piece's own activation a_i . x says how much it concerns x: activations are normalised over the
pieces of all tasks, sharpened by a temperature, and the k largest run. There is no router to
forget. The composition is `moe.systems.continual.mixture_of_rank`.

What was settled:
- The exact formula was not found: scores are |a_i . x| / ||A x|| / 0.1, weights their softmax over
  all pieces, and a piece's answer stays (a_i . x) b_i.
- Tasks are linear: inputs of task t lie near its own 5-dimensional subspace of R^16, targets are
  (W0 + D_t) x. Four tasks come one after the other, without data of earlier ones; each brings 4
  pieces, and 4 run.
- Two baselines with the same updates and data: one update of rank 16 tuned through all tasks, and
  an update of rank 4 for each task, trained by itself, all added up.
- The rate is the same for all three, 3e-3, and was the best of 3e-3, 1e-2 and 3e-2 for each of them
  on other seeds.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

TASKS, WIDTH, DIMENSIONS, RANK, K = 4, 16, 5, 4, 4
UPDATES, BATCH, RATE = 600, 128, 3e-3


def quick() -> None:
    """All pieces at weight one are plain LoRA; old pieces never change; k pieces run."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe import MoE
    from pointsman.moe.experts import LoRAExperts, MixedExperts
    from pointsman.moe.systems.continual import mixture_of_rank

    def banks(layer: MoE) -> list[LoRAExperts]:
        assert isinstance(layer.experts, MixedExperts)
        return [bank for bank in layer.experts.parts if isinstance(bank, LoRAExperts)]

    torch.manual_seed(0)
    base = nn.Linear(6, 5)
    layer = mixture_of_rank(base, RANK, K)
    x = torch.randn(20, 6)
    assert_close(layer(x)[0], base(x))
    (first,) = banks(layer)
    nn.init.normal_(first.b_EOR)
    summed = first.dense(x, torch.ones(20, RANK))
    plain = x @ first.a_ERD[:, 0].T @ first.b_EOR[:, :, 0]
    assert_close(summed, plain)
    grown = mixture_of_rank(base, RANK, K, earlier=layer)
    optimiser = torch.optim.Adam([w for w in grown.parameters() if w.requires_grad], 0.1)
    before = [w.clone() for w in (*first.parameters(), *base.parameters())]
    for _ in range(3):
        optimiser.zero_grad()
        y, routing = grown(x)
        y.square().mean().backward()
        optimiser.step()
    after = [*first.parameters(), *base.parameters()]
    must(all(map(torch.equal, before, after)), "what earlier tasks brought never changes")
    must(bool(banks(grown)[1].b_EOR.any()), "the new pieces learn")
    must(bool((routing.route.branches_per_input() == K).all()), "k pieces run for each token")
    must(routing.route.num_branches == 2 * RANK, "pieces of all tasks are on offer")


def _tasks(seed: int) -> tuple["nn.Linear", list[Callable[[int], tuple["Tensor", "Tensor"]]]]:
    """The base layer, and for each task a function that draws inputs and targets."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> "Tensor":
        return torch.randn(*shape, generator=generator)

    base = nn.Linear(WIDTH, WIDTH, bias=False)
    base.weight.data = normal(WIDTH, WIDTH) * WIDTH**-0.5

    def task() -> Callable[[int], tuple["Tensor", "Tensor"]]:
        subspace = torch.linalg.qr(normal(WIDTH, DIMENSIONS)).Q
        update = normal(WIDTH, RANK) @ normal(RANK, WIDTH) * (WIDTH * RANK) ** -0.5

        def draw(count: int) -> tuple["Tensor", "Tensor"]:
            x = normal(count, DIMENSIONS) @ subspace.T + 0.05 * normal(count, WIDTH)
            return x, x @ (base.weight.data + update).T

        return draw

    return base, [task() for _ in range(TASKS)]


def _answer(module: "nn.Module", x: "Tensor") -> "Tensor":
    found = module(x)
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y


def _fit(module: "nn.Module", draw: Callable[[int], tuple["Tensor", "Tensor"]]) -> None:
    import torch

    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, RATE)
    for _ in range(UPDATES):
        x, y = draw(BATCH)
        optimiser.zero_grad()
        loss = (_answer(module, x) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def full(seed: int) -> Figures:
    """Relative error over all tasks after the last: mixture, one update in sequence, all summed."""
    import torch
    from torch import nn

    from pointsman.moe.experts import LoRAExperts
    from pointsman.moe.systems.continual import mixture_of_rank

    torch.manual_seed(seed)
    base, tasks = _tasks(seed)
    found: dict[str, float] = {}

    class Update(nn.Module):
        """The base layer plus low-rank updates."""

        def __init__(self, *updates: LoRAExperts) -> None:
            super().__init__()
            self.updates = nn.ModuleList(updates)

        def forward(self, x: "Tensor") -> "Tensor":
            with torch.no_grad():
                y: Tensor = base(x)
            for update in self.updates:
                assert isinstance(update, LoRAExperts)
                y = y + update(x, torch.tensor([0, len(x)]))
            return y

    def low_rank(rank: int) -> LoRAExperts:
        return LoRAExperts(1, WIDTH, rank=rank)

    @torch.no_grad()
    def error(module: nn.Module, chosen: Sequence[int]) -> float:
        errors = []
        for at in chosen:
            x, y = tasks[at](2000)
            # Over what the update adds: the base layer alone scores one.
            errors.append(
                float((_answer(module, x) - y).square().sum() / (base(x) - y).square().sum())
            )
        return sum(errors) / len(errors)

    layer, learned = None, []
    for at, draw in enumerate(tasks):
        layer = mixture_of_rank(base, RANK, K, earlier=layer)
        _fit(layer, draw)
        learned.append(error(layer, [at]))
    assert layer is not None
    found["mixture of rank: error on all tasks"] = error(layer, range(TASKS))
    found["mixture of rank: error on a task just learned"] = sum(learned) / TASKS
    sequence = Update(low_rank(TASKS * RANK))
    alone = [low_rank(RANK) for _ in tasks]
    for draw, own in zip(tasks, alone, strict=True):
        _fit(sequence, draw)
        _fit(Update(own), draw)
    found["one update: error on all tasks"] = error(sequence, range(TASKS))
    found["summed updates: error on all tasks"] = error(Update(*alone), range(TASKS))
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    mixed, summed, one = (
        mean(measurements, f"{row}: error on all tasks")
        for row in ("mixture of rank", "summed updates", "one update")
    )
    return mixed < 0.6 * summed and mixed < one


CLAIM = Claim(
    slug="mixture-of-rank",
    paper="Little By Little: Continual Learning via Self-Activated Sparse Mixture-of-Rank Adaptive "
    "Learning",
    year=2025,
    arxiv="2506.21035",
    level="moe",
    claim="Rank-1 pieces that score themselves and are frozen after their task forget less than "
    "low-rank updates that are added up or tuned on.",
    baseline="One low-rank update of all ranks tuned through the tasks; and an update for each "
    "task, added up; with equal ranks, updates and data.",
    criterion="After four linear tasks on different subspaces, in the mean over tasks and seeds: "
    "the relative error is below 0.6 times that of the summed updates, and below that of one "
    "update tuned through all tasks.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.mixture_of_rank",
    composition="self-activated scores · top-4, not renormalised · rank-1 experts, older frozen · "
    "frozen shared base",
    key={
        "mixture": "mixture of rank: error on all tasks",
        "summed": "summed updates: error on all tasks",
        "one update": "one update: error on all tasks",
    },
)
