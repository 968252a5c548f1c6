"""FSMoE: cost models say into how many pieces to cut a layer, and where gradients fit between.

Pan et al., "FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models"
(2025, arXiv 2501.10714).

The time of each operation is alpha + beta * size, fitted online. A layer's rows are cut into r
pieces, so that exchanges between nodes, gathering inside nodes and experts overlap; r is chosen by
closed expressions, for the forward and the backward pass by itself. Gradients are sent between
nodes in the gaps that a layer leaves there.

What was settled:
- The paper's four expressions were not seen. `moe.parallel.predict` is the largest of five lower
  bounds of ours, by what holds the others up; all r from 1 to 32 are tried in it.
- Everything runs on an event-by-event simulation of one device with three resources. The system,
  its kernels and its 1.18 to 1.22 times on 1,458 layers of a cluster cannot be measured here; nor
  is its differential evolution for what greedy placement of gradients leaves.
- 200 random layers a seed: alpha from 10 to 316 microseconds, beta from 1 to 316 nanoseconds a
  row, 1,000 to 100,000 rows, all drawn evenly in the logarithm; the backward pass computes twice
  as long. Gradients: four of these layers in turn, each with gradients that alone would take from
  0.1 to 1 times its own time.
- That every single layer is within 3% of its best r would be too much to ask of our closed form: on
  seeds used for tuning about one in a hundred was not. The criterion, set then, asks for 95 of 100,
  and the worst is shown.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import random

    from pointsman.moe.parallel import LayerCosts

LAYERS, LIMIT = 200, 32


def quick() -> None:
    """The prediction never exceeds the simulation, and gradients in gaps never cost more."""
    import random

    from pointsman.moe.parallel import (
        LayerCosts,
        Line,
        fit_line,
        place_gradients,
        predict,
        simulate,
    )

    rng = random.Random(0)
    for _ in range(30):
        costs, rows = _layer(rng), 10 ** rng.uniform(3, 5)
        for degree in (1, 2, 5, 16):
            ran = simulate(costs, rows, degree)
            must(predict(costs, rows, degree) <= ran.seconds * (1 + 1e-9), "a lower bound")
            must(max(ran.busy) <= ran.seconds * (1 + 1e-9), "no resource works longer")
        ran = simulate(costs, rows, 3)
        spread = place_gradients([ran] * 4, [rows] * 4, costs.inter)
        end = place_gradients([ran] * 4, [rows] * 4, costs.inter, gaps=False)
        must(spread.seconds <= end.seconds * (1 + 1e-9), "gaps are free")
        must(abs(spread.hidden + spread.left - 4 * rows) < 1e-6 * rows, "everything is sent")
    free = LayerCosts(Line(0, 1e-7), Line(0, 1e-7), Line(0, 1e-6))
    busiest = max(simulate(free, 1e4, 32).busy)
    must(simulate(free, 1e4, 32).seconds < 1.05 * busiest, "free pieces hide all but one resource")
    line = fit_line([1e3, 1e4, 1e5], [1e-4 + 1e-8 * rows for rows in (1e3, 1e4, 1e5)])
    must(abs(line.alpha - 1e-4) < 1e-9 and abs(line.beta - 1e-8) < 1e-13, "a fit finds the line")


def _layer(rng: "random.Random") -> "LayerCosts":
    from pointsman.moe.parallel import LayerCosts, Line

    def line() -> Line:
        return Line(10 ** rng.uniform(-5, -3.5), 10 ** rng.uniform(-9, -6.5))

    return LayerCosts(line(), line(), line())


def full(seed: int) -> Figures:
    """Time of the chosen number of pieces over the best, over two pieces, and of gradients."""
    import random

    from pointsman.moe.parallel import choose_degree, place_gradients, simulate

    rng = random.Random(seed)
    over_best, over_two, over_end, differ = [], [], [], 0
    backward = []
    for _ in range(LAYERS):
        costs, rows = _layer(rng), 10 ** rng.uniform(3, 5)
        chosen = []
        for one in (costs, costs.backward()):
            times = [simulate(one, rows, degree).seconds for degree in range(1, LIMIT + 1)]
            chosen.append(choose_degree(one, rows, limit=LIMIT))
            over_best.append(times[chosen[-1] - 1] / min(times))
            over_two.append(times[1] / times[chosen[-1] - 1])
        differ += chosen[0] != chosen[1]
        backward.append((simulate(costs.backward(), rows, chosen[1]), costs.inter))
        if len(backward) == 4:
            line = backward[0][1]
            sizes = [line.fits(ran.seconds * rng.uniform(0.1, 1)) for ran, _ in backward]
            layers = [ran for ran, _ in backward]
            ends = place_gradients(layers, sizes, line, gaps=False).seconds
            over_end.append(ends / place_gradients(layers, sizes, line).seconds)
            backward.clear()
    return {
        "chosen over best: within 3%": sum(ratio <= 1.03 for ratio in over_best) / len(over_best),
        "chosen over best: mean": sum(over_best) / len(over_best),
        "chosen over best: worst": max(over_best),
        "two pieces over chosen: mean": sum(over_two) / len(over_two),
        "two pieces over chosen: least": min(over_two),
        "gradients at the end over in gaps: mean": sum(over_end) / len(over_end),
        "gradients at the end over in gaps: least": min(over_end),
        "forward and backward: choices that differ": differ / LAYERS,
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return (
        mean(measurements, "chosen over best: within 3%") >= 0.95
        and mean(measurements, "two pieces over chosen: mean") > 1
        and min(found["gradients at the end over in gaps: least"] for found in measurements) >= 1
    )


CLAIM = Claim(
    slug="fsmoe",
    paper="FSMoE: A Flexible and Scalable Training System for Sparse Mixture-of-Experts Models",
    year=2025,
    arxiv="2501.10714",
    level="moe",
    claim="A cost model of lines picks the number of pieces that a layer should be cut into, and "
    "sending gradients in the gaps between messages saves their time.",
    baseline="The best of 1 to 32 pieces by trying all; always two pieces; all gradients at the "
    "end.",
    criterion="On 200 random layers, both passes, in the mean over the seeds: the chosen number of "
    "pieces is within 3% of the best one's simulated time for at least 95 of 100, and quicker than "
    "two pieces in the mean; gradients in gaps never take longer than at the end.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.parallel.choose_degree",
    composition="lines fitted to times · closed form of a pipeline · event simulation · gradients "
    "in gaps",
    note="The closed form's worst choice among 400 passes took up to 10% longer than the best, and "
    "forward and backward passes want another number of pieces in more than a third of the layers.",
    key={
        "within 3%": "chosen over best: within 3%",
        "worst": "chosen over best: worst",
        "over two pieces": "two pieces over chosen: mean",
        "gradients": "gradients at the end over in gaps: mean",
    },
)
