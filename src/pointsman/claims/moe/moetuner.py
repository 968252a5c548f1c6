"""MoETuner: experts on devices by two integer programs, even load first and then quick links.

Go and Mahajan, "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement and
Token Routing" (2025, arXiv 2502.06643).

From a recorded trace, one program for each layer groups experts into as many clusters as there are
devices, minimising the distance of the clusters' loads from their mean; a second one puts the
clusters of all layers on devices so that the sum over layers of the slowest link's time is
smallest. The router and the outputs stay as they are; the table is loaded at the start of serving.

What was settled:
- HiGHS through SciPy solves the programs, to the paper's tolerance of 0.025 and at most 10 nodes of
  branch and bound, where the paper has Gurobi.
- The paper measures end-to-end time on 8 and 16 GPUs. Here traces are drawn from Markov chains with
  skewed loads (exponent 0.6) and affinity between layers (2.0), 6 layers of 8 experts on 2 nodes of
  2 devices; 4,000 tokens to place by and 4,000 others to measure on.
- Seconds are simulated: the fullest device of each layer at 0.1 microseconds a row, and the busiest
  link between layers at 8 KiB a row, 200 GB/s inside a node and 25 GB/s between nodes.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

LAYERS, EXPERTS = 6, 8


def quick() -> None:
    """Both programs equal brute force on 4 experts, 2 devices and 2 layers."""
    from itertools import product

    import numpy as np
    from numpy.testing import assert_allclose

    from pointsman.moe.parallel import Cluster, MarkovTraces, even_clusters, moetuner, seconds

    cluster = Cluster(2, 1)
    for seed in range(3):
        trace = MarkovTraces(seed, 2, 4, skew=0.6).draw(200, 0)
        groups = []
        for load in trace.load:
            every = [np.array(way) for way in product((0, 1), repeat=4) if len(set(way)) == 2]
            gaps = [np.abs(np.bincount(way, load, 2) - load.sum() / 2).sum() for way in every]
            found = even_clusters(load, 2)
            gap = np.abs(np.bincount(found, load, 2) - load.sum() / 2).sum()
            assert_allclose(gap, min(gaps), atol=1e-6)
            groups.append(found)
        ways = [np.stack([groups[0], groups[1] ^ flip]) for flip in (0, 1)]
        fullest = [int(np.bincount(way.ravel(), minlength=2).max()) for way in ways]
        costs = [seconds(trace, way, cluster, row_bytes=8192, row_seconds=0.0) for way in ways]
        best = min(cost for cost, most in zip(costs, fullest, strict=True) if most == min(fullest))
        placed = moetuner(trace, cluster, gap=0.0)
        assert_allclose(seconds(trace, placed, cluster, row_bytes=8192, row_seconds=0.0), best)
        must(len(np.unique(placed[0])) == 2, "every device has an expert of each layer")


def full(seed: int) -> Figures:
    """Imbalance, crossing tokens and simulated time of four placements on other tokens."""
    from pointsman.moe.parallel import (
        Cluster,
        MarkovTraces,
        contiguous,
        crossing,
        greedy,
        imbalance,
        moetuner,
        seconds,
        shuffled,
    )

    cluster = Cluster(2, 2)
    world = MarkovTraces(seed, LAYERS, EXPERTS, affinity=2.0, skew=0.6)
    known, fresh = world.draw(4000, seed=1), world.draw(4000, seed=2)
    shape = (LAYERS, EXPERTS, cluster.devices)
    placements = {
        "moetuner": moetuner(known, cluster, node_limit=10),
        "contiguous": contiguous(*shape),
        "random": shuffled(*shape, seed=seed),
        "greedy by load": greedy(known, cluster.devices),
    }
    found: dict[str, float] = {}
    for row, placement in placements.items():
        took = seconds(fresh, placement, cluster, row_bytes=8192, row_seconds=1e-7)
        found |= {
            f"{row}: fullest over mean load, less one": imbalance(
                fresh, placement, cluster.devices
            ),
            f"{row}: steps to another device": crossing(fresh, placement, cluster.devices),
            f"{row}: simulated microseconds": 1e6 * took,
        }
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    load, steps = "fullest over mean load, less one", "steps to another device"
    return of("moetuner", load) <= 0.7 * of("contiguous", load) and of("moetuner", steps) <= of(
        "contiguous", steps
    )


CLAIM = Claim(
    slug="moetuner",
    paper="MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement and Token "
    "Routing",
    year=2025,
    arxiv="2502.06643",
    level="moe",
    claim="Placing experts by two integer programs over recorded routes evens out the devices and "
    "lowers what they send each other, against contiguous blocks.",
    baseline="Contiguous blocks; random and greedy (by load) placements beside them.",
    criterion="On tokens that nothing was placed by, in the mean over the seeds: the load of the "
    "fullest device over the mean, less one, is at most 0.7 times that of contiguous blocks, and "
    "no more steps go to another device.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.parallel.moetuner",
    composition="trace of routes · program of even clusters · program of clusters on devices",
    note="Most of the gain over contiguous blocks is the even load: placing by load alone, "
    "greedily, comes within a few percent of the simulated time.",
    key={
        "load": "moetuner: fullest over mean load, less one",
        "load, contiguous": "contiguous: fullest over mean load, less one",
        "us": "moetuner: simulated microseconds",
        "us, contiguous": "contiguous: simulated microseconds",
    },
)
