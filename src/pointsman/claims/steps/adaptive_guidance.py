"""Adaptive guidance: the unconditional half of guidance stops once it says nothing new.

Castillo et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models"
(2023, arXiv 2312.12487).

Guided sampling evaluates a network twice a step, with a condition and without. Once the cosine of
the two predictions exceeds a threshold, the steps that are left use the condition alone. LinearAG
also replaces unconditional evaluations of the first half by least squares on earlier predictions.
The parts: `steps.AdaptiveGuidance`, `steps.LinearGuidance`, `steps.Guided`.

What was settled:
- Digits are drawn from an exact mixture: 300 training images with Gaussian noise of 0.2 a pixel
  around each, whose noise prediction is known in closed form, with a label and without. A network
  of this size trained on the 1,000 images did not show the mechanism, because its conditional and
  unconditional predictions still differ at low noise, where the exact ones agree (seed 100).
- 20 DDIM steps, guidance at scale 3, cosine schedule. With a schedule linear in the rate of noise
  the class is settled late, and stopping guidance early costs more (seed 100).
- Samples are held against the fully guided ones from the same noise: the mean distance, relative
  to the spread of those. Samples decide one by one.
- Baselines: guided sampling with fewer steps, of at least as many evaluations; and as many
  unconditional evaluations left out at random steps of each sample.
- The threshold, 0.999, was set on seed 100.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

STEPS, SCALE, THRESHOLD, SAMPLES = 20, 3.0, 0.999, 100


def quick() -> None:
    """A threshold above 1 is the guided sampler bit for bit; saved evaluations are counted."""
    import torch
    from torch.testing import assert_close

    from pointsman.claims import denoising
    from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided
    from pointsman.steps.policies.linear_guidance import LinearGuidance
    from pointsman.steps.samplers import DDIM
    from pointsman.steps.sampling import Sampled, StepPolicy, sample
    from pointsman.steps.schedules import cosine

    schedule = cosine()
    evaluations = denoising.guided(denoising.mixture(denoising.images(0), components=60), schedule)
    x, y = _start(0, 20)

    def run(policy: StepPolicy) -> Sampled:
        times = schedule.times(10)
        return sample(evaluations, policy, DDIM(schedule), x, times, condition=y)

    full, never = run(Guided(SCALE)), run(AdaptiveGuidance(SCALE, 1.1))
    must(torch.equal(full.x, never.x), "a threshold above 1 is the guided sampler")
    must(full.evaluations.tolist() == [20] * 20, "which evaluates twice a step")
    must(float(never.cost.mean()) == 20.0, "and pays for it")
    before = full.evaluations
    for threshold in (0.9999, 0.999, 0.99, -1.1):
        found = run(AdaptiveGuidance(SCALE, threshold)).evaluations
        must(bool((found <= before).all()), "a lower threshold never evaluates more")
        before = found
    must(bool((before < 20).all()), "a low threshold saves on every sample")
    linear = LinearGuidance(SCALE, (), 10).fit(
        evaluations, DDIM(schedule), x, schedule.times(10), condition=y
    )
    assert_close(run(linear).x, full.x, rtol=0, atol=0)


def _start(seed: int, samples: int) -> tuple["Tensor", "Tensor"]:
    """Starting noise and labels, every digit as often."""
    import torch

    from pointsman.claims.denoising import PIXELS

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, PIXELS, generator=generator, dtype=torch.float64)
    return x, torch.arange(samples) % 10


def full(seed: int) -> Figures:
    """Distance to the fully guided samples, evaluations and right classes of every policy."""
    import torch

    from pointsman.claims import denoising
    from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided
    from pointsman.steps.policies.linear_guidance import LinearGuidance
    from pointsman.steps.quality import relative_distance
    from pointsman.steps.samplers import DDIM
    from pointsman.steps.sampling import Sampled, StepPolicy, sample
    from pointsman.steps.schedules import cosine

    schedule = cosine()
    mixture = denoising.mixture(denoising.images(seed))
    evaluations = denoising.guided(mixture, schedule)
    x, y = _start(seed, SAMPLES)

    def run(policy: StepPolicy, steps: int = STEPS) -> Sampled:
        return sample(evaluations, policy, DDIM(schedule), x, schedule.times(steps), condition=y)

    reference = run(Guided(SCALE))
    adaptive = run(AdaptiveGuidance(SCALE, THRESHOLD))
    spent = float(adaptive.evaluations.double().mean())
    fewer = -int(-spent // 2)  # rounded up: no fewer evaluations than adaptive guidance
    linear = LinearGuidance(SCALE)
    other, labels = _start(seed + 1000, SAMPLES // 2)
    linear.fit(evaluations, DDIM(schedule), other, schedule.times(STEPS), condition=labels)
    runs = {
        "guided": reference,
        "adaptive": adaptive,
        "fewer steps": run(Guided(SCALE), fewer),
        "at random": run(Guided(SCALE, _at_random(adaptive.evaluations - STEPS, seed))),
        "first half guided": run(Guided(SCALE, torch.arange(STEPS) < STEPS // 2)),
        "last half guided": run(Guided(SCALE, torch.arange(STEPS) >= STEPS // 2)),
        "linear": run(linear),
    }
    found = {}
    for name, made in runs.items():
        nearest = torch.cdist(made.x, mixture.means).argmin(dim=1)
        right = (mixture.labels[nearest] == y).double().mean()
        found[f"{name}: evaluations"] = float(made.evaluations.double().mean())
        found[f"{name}: distance"] = float(relative_distance(made.x, reference.x).mean())
        found[f"{name}: right digit"] = float(right)
    return found


def _at_random(guided: "Tensor", seed: int) -> "Tensor":
    """(n, K) bool: so many steps of each sample (n,), at random."""
    import torch

    chance = torch.rand(len(guided), STEPS, generator=torch.Generator().manual_seed(seed))
    return chance.argsort(dim=1).argsort(dim=1) < guided[:, None]


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    saved = at["adaptive: evaluations"] <= 0.75 * at["guided: evaluations"]
    closer = at["adaptive: distance"] <= 0.5 * min(
        at["fewer steps: distance"], at["at random: distance"]
    )
    right = at["adaptive: right digit"] >= at["guided: right digit"] - 0.01
    early = at["first half guided: distance"] <= 0.5 * at["last half guided: distance"]
    return saved and closer and right and early


CLAIM = Claim(
    slug="adaptive-guidance",
    paper="Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
    year=2023,
    arxiv="2312.12487",
    level="steps",
    claim="Guidance may stop once conditional and unconditional predictions agree: a quarter of "
    "the evaluations less, with next to the same samples and without training.",
    baseline="Guided sampling with fewer steps, of at least as many evaluations; and as many "
    "unconditional evaluations left out at random steps.",
    criterion="In the mean over seeds, against 20 guided DDIM steps from the same noise: at most "
    "75% of the evaluations; a distance to the guided samples at most half of that of fewer steps "
    "and of leaving out at random; at most 1 point fewer samples of the right digit; and "
    "dropping guidance in the last half changes the samples at most half as much as in the first.",
    quick=quick,
    full=full,
    decide=decide,
    composition="guidance as two weighted evaluations · cosine rule per sample · DDIM",
    entry="pointsman.steps.AdaptiveGuidance",
    key={
        "evaluations": "adaptive: evaluations",
        "distance": "adaptive: distance",
        "fewer steps": "fewer steps: distance",
        "at random": "at random: distance",
    },
)
