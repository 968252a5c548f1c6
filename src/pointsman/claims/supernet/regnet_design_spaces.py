"""RegNet: a space whose widths lie on a quantised line is no worse than a free one, and simpler.

Radosavovic et al., "Designing Network Design Spaces" (2020, arXiv 2003.13678).

Spaces are compared by the distribution of errors of networks drawn from them at equal cost. The
widths of a RegNet's blocks follow a line that is quantised to powers; a free space (AnyNet) gives
each stage a width and a depth of its own. The parts are `regnet`, `draw_within` and
`error_distribution` in `design_spaces`.

What was settled:
- Residual networks of fully connected blocks on noisy digits instead of convolutions on ImageNet,
  with 12,000 to 16,000 parameters; 4 to 12 blocks. No bottleneck and no groups.
- The free space has 4 stages of 1 to 3 blocks, widths are multiples of 4 up to 64 in both spaces.
- 16 networks from each space, all trained alike for 120 updates; errors on the test part, nothing
  is chosen by them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from pointsman.supernet.design_spaces import Stages

NETWORKS, UPDATES = 16, 120
WITHIN = (12_000, 16_000)  # parameters


def quick() -> None:
    """The generator gives the published widths and depths; wider spaces have them as members."""
    import numpy as np

    from pointsman.supernet.design_spaces import error_distribution, regnet

    found = regnet(13, 24, 36.44, 2.49, group=8)
    must(found.widths == (24, 56, 152, 368), f"widths 24, 56, 152, 368, got {found.widths}")
    must(found.depths == (1, 1, 4, 7), f"depths 1, 1, 4, 7, got {found.depths}")
    rng = np.random.default_rng(0)
    for _ in range(200):
        stages = _line(rng)
        must(stages.rising, f"widths of a line rise, got {stages.widths}")
        must(len(set(stages.widths)) == len(stages.widths), "equal widths in a row are one stage")
    shares = error_distribution([0.1, 0.2, 0.3], [0.15, 0.35]).tolist()
    must(shares == [1 / 3, 1.0], "shares of networks below an error")


def full(seed: int) -> Figures:
    """Errors of 16 networks from each space."""
    import numpy as np

    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.claims.testbeds import accuracy, fit
    from pointsman.supernet.design_spaces import draw_within, error_distribution

    data = noisy_digits(seed)
    errors: dict[str, list[float]] = {}
    for name, draw in (("quantised line", _line), ("free", _free)):
        rng = np.random.default_rng(seed)
        for number, stages in enumerate(draw_within(draw, _parameters, WITHIN, NETWORKS, rng)):
            net = network(stages, seed=1000 * seed + number)
            fit(net, data.train, seed=seed, updates=UPDATES, noise=NOISE)
            errors.setdefault(name, []).append(1 - accuracy(net(data.test.x), data.test.y))
    middle = float(np.median([error for found in errors.values() for error in found]))
    figures = {}
    for name, found in errors.items():
        figures[f"{name}: mean error"] = float(np.mean(found))
        figures[f"{name}: least error"] = min(found)
        below = float(error_distribution(found, [middle])[0])
        figures[f"{name}: share below the common median"] = below
    return figures


def _line(rng: "np.random.Generator") -> "Stages":
    """A network of the quantised line."""
    from pointsman.supernet.design_spaces import Stages, regnet

    while True:
        depth, start = int(rng.integers(4, 13)), float(rng.integers(4, 49))
        slope, factor = float(rng.uniform(0, 12)), float(rng.uniform(1.5, 3.0))
        found: Stages = regnet(depth, start, slope, factor, multiple=4)
        if max(found.widths) <= 64:
            return found


def _free(rng: "np.random.Generator") -> "Stages":
    """A network with a width and a depth of its own in each of four stages."""
    from pointsman.supernet.design_spaces import Stages

    widths = tuple(int(width) for width in 4 * rng.integers(1, 17, size=4))
    return Stages(widths, tuple(int(depth) for depth in rng.integers(1, 4, size=4)))


def _rows(stages: "Stages") -> list[tuple[int, int]]:
    """Inputs and outputs of every block."""
    widths = [
        width
        for width, depth in zip(stages.widths, stages.depths, strict=True)
        for _ in range(depth)
    ]
    return list(zip([widths[0], *widths], widths, strict=False))


def _parameters(stages: "Stages") -> float:
    """Of `network`, counted from its shapes."""
    first, last = stages.widths[0], stages.widths[-1]
    blocks = sum(
        2 * a + (a + 1) * b + (b + 1) * b + (0 if a == b else a * b) for a, b in _rows(stages)
    )
    return float(65 * first + blocks + 2 * last + 10 * (last + 1))


def network(stages: "Stages", seed: int) -> "nn.Sequential":
    """Residual blocks of two layers behind a normalisation, from 64 pixels to ten classes."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [_block(inputs, outputs) for inputs, outputs in _rows(stages)]
        last = stages.widths[-1]
        return nn.Sequential(
            nn.Linear(64, stages.widths[0]), *blocks, nn.LayerNorm(last), nn.Linear(last, 10)
        )


def _block(inputs: int, outputs: int) -> "nn.Module":
    from torch import Tensor, nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.LayerNorm(inputs),
                nn.Linear(inputs, outputs),
                nn.ReLU(),
                nn.Linear(outputs, outputs),
            )
            same = inputs == outputs
            self.past: nn.Module = nn.Identity() if same else nn.Linear(inputs, outputs, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x) + self.past(x)
            return out

    return Residual()


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    line = mean(measurements, "quantised line: mean error")
    return line <= mean(measurements, "free: mean error")


CLAIM = Claim(
    slug="regnet-design-spaces",
    paper="Designing Network Design Spaces",
    year=2020,
    arxiv="2003.13678",
    level="supernet",
    claim="Networks whose widths lie on a quantised line are better on average than networks of a "
    "free space at equal cost.",
    baseline="A free space with a width and a depth for each of four stages, sampled and trained "
    "alike, in the same range of parameters.",
    criterion="The mean test error of 16 networks of the quantised line, in the mean over the "
    "seeds, is at most that of 16 networks of the free space.",
    quick=quick,
    full=full,
    decide=decide,
    composition="quantised linear widths · networks drawn within a range of cost · distribution of "
    "errors",
    entry="pointsman.supernet.design_spaces.regnet",
    key={
        "line": "quantised line: mean error",
        "free": "free: mean error",
        "line below median": "quantised line: share below the common median",
    },
)
