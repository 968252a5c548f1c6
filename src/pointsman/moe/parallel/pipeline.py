"""A routed layer cut into pieces whose messages and products overlap: how long, how many pieces.

One piece of r passes five stages: dispatch between nodes, gathering inside the node, the experts,
scattering inside the node, and combination between nodes. Three resources work at once: the links
between nodes, those inside a node, and compute. More pieces overlap more, and each piece pays the
cost of beginning every operation.

Pan et al. 2025, "FSMoE: a flexible and scalable training system for sparse mixture-of-experts
models" (arXiv 2501.10714). Here are its planning of the number of pieces and of the gaps that
gradients are sent in, on a simulated device. Its training system, kernels, schedule for a real
cluster, and measurements of one are not.

Legend: r pieces of one layer, called its degree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from pointsman.errors import InputError
from pointsman.moe.parallel.plan import Line

RESOURCES = ("inter", "intra", "compute")
STAGES = (0, 1, 2, 1, 0)  # the resource of each stage


@dataclass(frozen=True)
class LayerCosts:
    """What one routed layer costs one device, each as a line in the rows of the device.

    Args:
        inter: one exchange between nodes; a piece makes two.
        intra: one gathering or scattering inside a node; a piece makes one of each.
        compute: the experts.
    """

    inter: Line
    intra: Line
    compute: Line

    def backward(self) -> "LayerCosts":
        """Of the backward pass: the same messages, and two products for each one."""
        return LayerCosts(self.inter, self.intra, self.compute.times(2))

    def of_piece(self, size: float, degree: int) -> tuple[float, float, float]:
        """Seconds of one piece's stage on each resource.

        Raises:
            InputError: a degree below one, or a negative size.
        """
        if degree < 1 or size < 0:
            raise InputError(
                f"a layer of rows is cut into at least one piece, got {size} rows in {degree}"
            )
        part = size / degree
        return self.inter.seconds(part), self.intra.seconds(part), self.compute.seconds(part)


@dataclass(frozen=True)
class Timeline:
    """How a layer ran.

    Attributes:
        seconds: from its begin to its end.
        busy: seconds that each of `RESOURCES` worked.
        gaps: (begin, end) times in which the links between nodes were idle.
    """

    seconds: float
    busy: tuple[float, float, float]
    gaps: tuple[tuple[float, float], ...]


def simulate(costs: LayerCosts, size: float, degree: int) -> Timeline:
    """Run one layer event by event; each resource takes what was ready first.

    Args:
        costs: of the layer.
        size: rows.
        degree: pieces.

    Raises:
        InputError: see `LayerCosts.of_piece`.
    """
    seconds = costs.of_piece(size, degree)
    waiting: list[list[tuple[float, int, int]]] = [[], [], []]  # (ready, piece, stage)
    for piece in range(degree):
        heappush(waiting[0], (0.0, piece, 0))
    free, last, gaps = [0.0, 0.0, 0.0], 0.0, []
    while any(waiting):
        begin, resource = min(
            (max(free[at], queue[0][0]), at) for at, queue in enumerate(waiting) if queue
        )
        _, piece, stage = heappop(waiting[resource])
        end = begin + seconds[resource]
        if resource == 0 and begin > free[0]:
            gaps.append((free[0], begin))
        free[resource], last = end, max(last, end)
        if stage + 1 < len(STAGES):
            heappush(waiting[STAGES[stage + 1]], (end, piece, stage + 1))
    each = [STAGES.count(at) * degree * seconds[at] for at in range(3)]
    return Timeline(last, (each[0], each[1], each[2]), tuple(gaps))


def predict(costs: LayerCosts, size: float, degree: int) -> float:
    """Seconds of a layer in closed form: the longest of five cases, by what holds the others up.

    Each case is a lower bound, and a schedule that keeps the resources busy comes near the largest.
    The paper's own four expressions were not seen; these are ours.

    Args:
        costs: of the layer.
        size: rows.
        degree: pieces.

    Raises:
        InputError: see `LayerCosts.of_piece`.
    """
    inter, intra, compute = costs.of_piece(size, degree)
    return max(
        2 * degree * inter,  # the links between nodes never rest
        degree * inter + 2 * intra + compute + inter,  # the last piece, sent out last
        2 * inter + 2 * degree * intra,  # the links inside nodes never rest
        2 * inter + degree * intra + compute + intra,  # the last piece, gathered last
        2 * inter + 2 * intra + degree * compute,  # compute never rests
    )


def choose_degree(costs: LayerCosts, size: float, *, limit: int = 32) -> int:
    """The number of pieces with the least predicted time, the smallest of equals.

    Args:
        costs: of the layer, of its forward or backward pass: they differ, and so may the choice.
        size: rows.
        limit: the most pieces.

    Raises:
        InputError: a limit below one, or a negative size.
    """
    if limit < 1:
        raise InputError(f"a layer is cut into at least one piece, got a limit of {limit}")
    return min(range(1, limit + 1), key=lambda degree: predict(costs, size, degree))


@dataclass(frozen=True)
class Overlap:
    """Where gradients were sent.

    Attributes:
        seconds: of all layers, and of what was left to send after them.
        hidden: size that was sent in gaps.
        left: size sent after the last layer.
    """

    seconds: float
    hidden: float
    left: float


def place_gradients(
    layers: Sequence[Timeline], sizes: Sequence[float], line: Line, *, gaps: bool = True
) -> Overlap:
    """Send the gradients of each layer between nodes while later layers leave those links idle.

    Greedy: the gaps are gone through in time, and each takes as much as fits whole, of what is
    ready by then; the rest goes out at the end in one piece. Nothing is delayed, and a piece pays
    its beginning inside a gap, so it never takes longer than sending all at the end. The paper goes
    on from there with differential evolution, which is not here.

    Args:
        layers: of the backward pass, in the order that they run.
        sizes: of each layer's gradients, ready when it ends.
        line: of summing gradients between nodes.
        gaps: False sends everything at the end, to compare with.

    Raises:
        InputError: not one size of at least 0 for each layer.
    """
    if len(sizes) != len(layers) or any(size < 0 for size in sizes):
        raise InputError(
            f"gradients need a size of at least 0 for each of {len(layers)} layers, "
            f"got {list(sizes)}"
        )
    waiting = hidden = 0.0
    for layer, size in zip(layers, sizes, strict=True):
        for begin, end in layer.gaps if gaps else ():
            piece = min(waiting, line.fits(end - begin))
            waiting, hidden = waiting - piece, hidden + piece
        waiting += size
    rest = line.seconds(waiting) if waiting > 0 else 0.0
    return Overlap(sum(layer.seconds for layer in layers) + rest, hidden, waiting)
