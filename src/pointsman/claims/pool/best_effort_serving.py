"""Learned best-effort serving: each request to the largest model that the load allows.

Jha et al., "Learned Best-Effort LLM Serving" (2024, arXiv 2401.07886).

Models of several sizes stay loaded. A small router sees a request's task, how many requests each
model has, and the arrival rate; it learns by double Q-learning, in a simulator, which model to
take. A request earns the model's quality on its task if it meets its deadline, else nothing. The
parts: `pool.simulate.serving` (servers that batch) and `pool.simulate.best_effort` (routers).

What was settled:
- Three servers that take 0.1, 0.4 and 1 s for a request that runs alone, 15% of that more for each
  further one in the batch, at most eight together. Three tasks, on which quality is 0.6, 0.8, 1;
  0.75, 0.9, 1; and 0.45, 0.7, 1. Deadline 2 s, hard. Sizes are log-normal, spread 0.3.
- Bursts: the arrival rate jumps among 1, 4 and 10 a second, every 20 s on average. Learning: 16
  streams of 3,000 requests, half of them bursts, half of one rate from 1 to 12. Test: 4,000
  requests of bursts, and 4,000 at 5 a second.
- Values are linear in indicators of load and rate by task, where the paper has a neural network. On
  seed 100 among 0 and -0.5 for a missed deadline while learning, 0.1 and 0.3 for the step and 0.8,
  0.9 and 0.95 for the discount, -0.5, 0.3 and 0.9 were taken. Figures count a miss as 0.
- The paper's baseline is static serving. Beside it stands a rule that knows the servers' pace and
  takes the best model that, as loaded now, would take no more than a share of the deadline; the
  share was chosen on seeds 100 and 101 as well.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

QUALITY = ((0.6, 0.8, 1.0), (0.75, 0.9, 1.0), (0.45, 0.7, 1.0))
SECONDS, DEADLINE, MARGIN = (0.1, 0.4, 1.0), 2.0, 0.65
BURSTS, BUSY = (1.0, 4.0, 10.0), (5.0,)
STREAMS, LENGTH, TEST = 16, 3000, 4000


def quick() -> None:
    """A batch slows its requests as computed, no request is lost, and load changes the choice."""
    import numpy as np

    from pointsman.pool.simulate.best_effort import DoubleQ, Fixed
    from pointsman.pool.simulate.serving import Requests, Seen, Server, bursts, serve

    two = Requests(np.array([0.0, 1.0]), np.zeros(2, dtype=np.int64), np.ones(2))
    seconds = serve([Server(2.0, slowdown=0.5)], two, Fixed(0)).seconds
    must(np.allclose(seconds, 2.5), "both are half done alone and half done at two thirds the pace")
    rng = np.random.default_rng(0)
    servers = [Server(0.05), Server(1.0, batch=1)]
    streams = [bursts(1000, (3.0,), rng, tasks=1) for _ in range(4)]
    router = DoubleQ(servers, [[0.5, 1.0]], 1.6).fit(streams)
    must(router.choose(Seen(0, (0, 0), 3.0)) == 1, "the large model, when it is free")
    must(router.choose(Seen(0, (0, 3), 3.0)) == 0, "the small one, when it is not")
    served = serve(servers, streams[0], router)
    must(bool((served.seconds > 0).all()) and served.server.max() < 2, "every request is served")


def full(seed: int) -> Figures:
    """Mean quality and share in time, in bursts and at 5 requests a second."""
    import numpy as np

    from pointsman.pool.simulate.best_effort import DoubleQ, Fixed, OneStep, earned
    from pointsman.pool.simulate.serving import Router, Server, bursts, serve

    rng = np.random.default_rng(seed)
    servers = [Server(seconds) for seconds in SECONDS]
    streams = [
        bursts(LENGTH, BURSTS if turn % 2 else (rng.uniform(1, 12),), rng)
        for turn in range(STREAMS)
    ]
    routers: dict[str, Router] = {
        "small": Fixed(0),
        "middle": Fixed(1),
        "large": Fixed(2),
        "one step ahead": OneStep(servers, QUALITY, DEADLINE, margin=MARGIN),
        "one step, no margin": OneStep(servers, QUALITY, DEADLINE),
        "learned": DoubleQ(servers, QUALITY, DEADLINE, seed=seed).fit(streams),
    }
    found = {}
    for name, rates in (("bursts", BURSTS), ("busy", BUSY)):
        test = bursts(TEST, rates, rng)
        for row, router in routers.items():
            served = serve(servers, test, router)
            found[f"{row}: {name}"] = float(earned(QUALITY, test, served, DEADLINE).mean())
            found[f"{row}: in time, {name}"] = float((served.seconds <= DEADLINE).mean())
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    static = max(at[f"{name}: bursts"] for name in ("small", "middle", "large"))
    kept = at["learned: in time, busy"] >= 0.95 and at["large: in time, busy"] < 0.5
    ahead = all(at[f"learned: {x}"] > at[f"one step ahead: {x}"] for x in ("bursts", "busy"))
    return at["learned: bursts"] >= 1.1 * static and kept and ahead


CLAIM = Claim(
    slug="best-effort-serving",
    paper="Learned Best-Effort LLM Serving",
    year=2024,
    arxiv="2401.07886",
    level="pool",
    claim="A router that learned from simulated load which model size to use keeps deadlines at "
    "rates where the large model alone fails, at higher quality than any one model.",
    baseline="Each model alone, and a rule that looks one step ahead knowing the servers' pace, "
    "with and without a margin.",
    criterion="In simulation, in the mean over seeds: in bursts the mean quality in time is at "
    "least 1.1 times that of the best single model; at 5 requests a second at least 95% are in "
    "time, where under half are with the large model alone; and mean quality is above that of the "
    "rule with a margin, both in bursts and at 5 a second.",
    quick=quick,
    full=full,
    decide=decide,
    composition="servers that batch · bursts of requests · task, loads and rate as the state · "
    "double Q-learning with late rewards",
    entry="pointsman.pool.simulate.best_effort.DoubleQ",
    key={
        "bursts, learned": "learned: bursts",
        "one step ahead": "one step ahead: bursts",
        "middle alone": "middle: bursts",
        "in time, busy": "learned: in time, busy",
    },
    note="The margin over static serving is large; over a rule that knows the servers' pace and "
    "looks one step ahead with a safety margin it is 2 to 3%.",
)
