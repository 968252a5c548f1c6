"""HESSO-CRIC: units fade to zero while training goes on, so that the cut costs nothing.

Chen, Ding, Zhu, Chen, Wu, Zharkov, Liang, "HESSO: Towards Automatic Efficient and User Friendly Any
Neural Network Training and Pruning" (2024, arXiv 2409.09085).

The part is `supernet.pruning.Fading`, with `mixed_saliency` (HESSO) or `trial_saliency` (CRIC) to
say which units are redundant; where we depart is said there.

What was settled:
- A teacher 16-8-1 and a student 16-32-1 with ReLU on normal inputs; 24 of the student's 32 units
  go. The student is trained for 600 updates, prunes over 300 and goes on for 300.
- One-shot pruning sets the same units to zero, by the same scores, at the first of the 300 updates,
  keeps them at zero, and has the same updates. The final loss is reported and not claimed: one-shot
  has more updates at its final size.
- The loss is watched on a batch of its own, after every update from the first of the 300.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pointsman.supernet.pruning import Fading

INPUTS, TEACHER, STUDENT = 16, 8, 32
REMOVED = 1 - TEACHER / STUDENT
BEFORE, PERIOD, AFTER = 600, 300, 300
BATCH, RATE = 128, 5e-3
SCALE = 3.0  # of the teacher, whose first weights give small outputs


def quick() -> None:
    """Redundant units are exactly zero after the period, as many as asked, and are cut for free."""
    import torch

    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.pruning import Fading

    network = mlp(6, 10, 8, 3, seed=0)
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    fading = Fading(network, x[:2], remove=0.5, start=2, period=5, periods=2)
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for step in range(15):
        optimiser.zero_grad()
        network(x).square().mean().backward()
        optimiser.step()
        fading.step()
        must(bool(fading.redundant.any()) == (step >= 2), "fading starts when it is to start")
    must(int(fading.redundant.sum()) == 9, "as many units go as asked")
    gone = torch.split(fading.redundant, [10, 8])
    zero = [
        network.get_parameter(f"{at}.{name}")[units].detach().abs().sum()
        for at, units in zip((0, 2), gone, strict=True)
        for name in ("weight", "bias")
    ]
    must(not any(zero), "they are exactly zero")
    small = fading.extract()
    must(
        float((small(x) - network(x)).abs().max().detach()) < 1e-6, "cutting them changes no output"
    )


def full(seed: int) -> Figures:
    """Peak and final loss of fading, with and without trials, and of one cut; is it exact?"""
    import copy

    import torch

    from pointsman.claims.testbeds import mlp
    from pointsman.supernet.pruning import Fading, trial_saliency

    generator = torch.Generator().manual_seed(seed)
    teacher = mlp(INPUTS, TEACHER, 1, seed=1000 + seed)
    held = torch.randn(1024, INPUTS, generator=generator)
    student = mlp(INPUTS, STUDENT, 1, seed=seed)

    def loss(network: "nn.Module", x: "Tensor") -> "Tensor":
        with torch.no_grad():
            wanted = teacher(x) * SCALE
        error: Tensor = network(x) - wanted
        return error.square().mean()

    def train(network: "nn.Module", steps: int, fading: "Fading | None" = None) -> list[float]:
        """The loss watched after every update."""
        optimiser, watched = torch.optim.Adam(network.parameters(), RATE), []
        for _ in range(steps):
            optimiser.zero_grad()
            x = torch.randn(BATCH, INPUTS, generator=generator)
            loss(network, x).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if fading is not None:
                fading.step()
            with torch.no_grad():
                watched.append(float(loss(network, held)))
        return watched

    found = {"before: loss": train(student, BEFORE)[-1]}
    trials = trial_saliency(student, held[:2], lambda net: loss(net, held), remove=REMOVED)
    for name, period, saliency in (
        ("fading", PERIOD, None),
        ("trials, fading", PERIOD, trials),
        ("one cut", 1, None),
    ):
        network = copy.deepcopy(student)
        fading = Fading(network, held[:2], remove=REMOVED, start=0, period=period)
        fading.saliency = saliency
        watched = train(network, PERIOD + AFTER, fading)
        small = fading.extract()
        with torch.no_grad():
            gap = float((small(held) - network(held)).abs().max())
        found[f"{name}: peak loss"] = max(watched)
        found[f"{name}: final loss"] = watched[-1]
        found[f"{name}: units"] = float(len(next(small.parameters())))
        found[f"{name}: gap of the cut"] = gap
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    gentle = mean(measurements, "fading: peak loss") < 0.5 * mean(
        measurements, "one cut: peak loss"
    )
    exact = all(
        figures[f"{name}: units"] == TEACHER and figures[f"{name}: gap of the cut"] < 1e-5
        for figures in measurements
        for name in ("fading", "trials, fading")
    )
    return gentle and exact


CLAIM = Claim(
    slug="hesso-cric",
    paper="HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and "
    "Pruning",
    year=2024,
    arxiv="2409.09085",
    level="supernet",
    claim="Units that fade to zero during training leave without a collapse of the loss, and "
    "cutting what is zero changes nothing.",
    baseline="The same units by the same scores set to zero at once, with the same updates.",
    criterion="In the mean over the seeds the peak loss from the first pruning update on is less "
    "than half of that of one cut; in every seed exactly 8 of 32 units are left, and cutting "
    "changes no output by 1e-5.",
    quick=quick,
    full=full,
    decide=decide,
    composition="channel groups · five criteria in one score · trials rolled back · fading",
    entry="pointsman.supernet.pruning.Fading",
    key={
        "fading, peak": "fading: peak loss",
        "one cut, peak": "one cut: peak loss",
        "fading, final": "fading: final loss",
        "one cut, final": "one cut: final loss",
    },
)
