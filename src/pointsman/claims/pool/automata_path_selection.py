"""Path selection by learning automata: probabilities move towards the path that was quick.

Zerna Torres, Avgeris, Papagianni, Pongrácz, Gódor & Grosso, "Reinforcement Learning-based Adaptive
Path Selection for Programmable Networks" (2025, arXiv 2508.13806).

For every packet an automaton draws a path; the delay that its telemetry reports becomes a reward in
[0, 1], and linear reward-inaction moves the probabilities: `RewardInaction`.

What was settled:
- The step is 0.02 and the reward clip(1 - delay / 5, 0, 1); the paper's own were not to be had.
- Reward-inaction is absorbing: once all the mass is on one path, nothing else is tried. Whoever
  wants it to follow congestion needs a floor, here 0.02 for each path, which is part of ours.
- Three paths with mean delays 1, 2 and 3 and noise; after half of 12,000 packets the order is
  reversed. No switch, no fixed-point arithmetic: the rule alone is checked.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.pool.online.bandit import Bandit

DELAYS = (1.0, 2.0, 3.0)
NOISE, WORST = 0.3, 5.0
PACKETS, STEP, FLOOR = 12_000, 0.02, 0.02
STREAMS = 5  # a seed, so that one absorbed early on the wrong path does not decide


def quick() -> None:
    """Mass is kept, the best path gains in expectation, no reward moves nothing, a floor holds."""
    import numpy as np

    from pointsman.pool.online.automaton import RewardInaction

    rng = np.random.default_rng(0)
    rewards = np.array([0.8, 0.6, 0.4])
    plain, floored = RewardInaction(3, step=0.1), RewardInaction(3, step=0.1, floor=0.05)
    for _ in range(300):
        for bandit in (plain, floored):
            before = bandit.probabilities()
            gain = 0.1 * before * rewards  # of each arm, when it is drawn, of what others have
            drift = gain[0] * (1 - before[0]) - before[0] * gain[1:].sum()
            must(drift >= -1e-12, "the best path gains in expectation")
            arm, _ = bandit.choose(None, None, rng)
            bandit.update(arm, 0.0)
            still = np.allclose(bandit.probabilities(), before, rtol=0, atol=1e-15)
            must(still, "no reward, no move")
            bandit.update(arm, float(rewards[arm]))
            after = bandit.probabilities()
            must(abs(float(after.sum()) - 1) < 1e-12, "mass is kept")
            if bandit is plain:
                moved = before * (1 - 0.1 * rewards[arm])
                moved[arm] += 0.1 * rewards[arm]
                must(np.allclose(after, moved, atol=1e-12), "the rule is linear reward-inaction")
        must(float(floored.probabilities().min()) >= 0.05 - 1e-12, "the floor holds")


def full(seed: int) -> Figures:
    """Mass on the best path before and after the change, with the delay, of three rules."""
    from pointsman.pool.online.automaton import RewardInaction

    found: dict[str, list[float]] = {}
    for stream in range(STREAMS):
        rules = {
            "with floor": RewardInaction(3, step=STEP, floor=FLOOR),
            "without floor": RewardInaction(3, step=STEP),
            "evenly": RewardInaction(3, step=1e-12),
        }
        for name, rule in rules.items():
            before, after, delay = _sent(rule, seed=1000 * seed + stream)
            found.setdefault(f"{name}: best path before", []).append(before)
            found.setdefault(f"{name}: best path after", []).append(after)
            found.setdefault(f"{name}: delay at the end", []).append(delay)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _sent(rule: "Bandit", *, seed: int) -> tuple[float, float, float]:
    """Mass on the best path, mean over the last quarter of either half, and delay in the last."""
    import numpy as np

    rng, half = np.random.default_rng(seed), PACKETS // 2
    mass, delays = np.zeros(PACKETS), np.zeros(PACKETS)
    for t in range(PACKETS):
        means = DELAYS if t < half else DELAYS[::-1]
        mass[t] = rule.probabilities()[int(np.argmin(means))]
        path, _ = rule.choose(None, None, rng)
        delays[t] = means[path] + NOISE * rng.normal()
        rule.update(path, float(np.clip(1 - delays[t] / WORST, 0, 1)))
    quarter = half // 4
    return (
        float(mass[half - quarter : half].mean()),
        float(mass[-quarter:].mean()),
        float(delays[-quarter:].mean()),
    )


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    return (
        at["with floor: best path before"] > 0.85
        and at["with floor: best path after"] > 0.85
        and at["without floor: best path after"] < 0.05
        and at["with floor: delay at the end"] < at["evenly: delay at the end"]
    )


CLAIM = Claim(
    slug="automata-path-selection",
    paper="Reinforcement Learning-based Adaptive Path Selection for Programmable Networks",
    year=2025,
    arxiv="2508.13806",
    level="pool",
    claim="An automaton that rewards quick paths converges to the best one, and finds the new best "
    "one when congestion moves.",
    baseline="The same rule without a floor, as it is usually written, and packets spread evenly.",
    criterion="In the mean over the seeds, with a floor of 0.02 the best path has more than 0.85 "
    "of the mass at the end of either half and the delay at the end is below that of spreading "
    "evenly, while without a floor the new best path has less than 0.05 at the end.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.pool.online.RewardInaction",
    composition="linear reward-inaction automaton · floor under every path · delay as reward",
    key={
        "new best path, floor": "with floor: best path after",
        "no floor": "without floor: best path after",
        "delay, floor": "with floor: delay at the end",
        "evenly": "evenly: delay at the end",
    },
)
