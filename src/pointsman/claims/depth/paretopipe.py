"""ParetoPipe: where to cut a network between two devices, for latency and for throughput.

Masud et al., "Where to Split? A Pareto-Front Analysis of DNN Partitioning for Edge Inference"
(2026, arXiv 2601.08025).

Every place between two parts of a network is a cut: the first parts run on one device, the state is
sent, the others run on another. One batch alone takes the sum of it all; of many in a row, the
slowest stage sets the pace. So the best cut differs between latency and throughput, and the cuts
worth having are a front. The part is `depth.splitting`: a profile of all cuts, a cost model, and a
pipeline of two processes with sockets of our own.

What was settled:
- A small convolution network whose states first grow and then shrink, with most of its work on the
  small ones; the seed draws its channels. Batches of 8.
- Two processes on this machine over loopback. Each waits out what a device of 60 or 120 MFLOPs per
  second would take, the line is shaped to a bandwidth and 40 ms of round trip: so the two devices
  are unequal and known, and a busy machine blurs them less. What is tested is the rest: that
  sending, shaping, packing and the overlap of stages come out as the cost model says.
- Measured are the cuts of the predicted front, and on the quick line everything on either device
  too; each cut is the median of two runs.
- A point is off the front if another is at least as good in both and better in one. The paper's
  code asks for better in both, which leaves points on it that nobody should choose.
- The paper also compares transports; there is one here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.depth.splitting import Pipeline
    from pointsman.depth.trunks import Trunk

BATCH, FIRST, SECOND, ROUND_TRIP = 8, 60.0, 120.0, 0.04
BANDWIDTHS = {"1 MB/s": 1e6, "150 kB/s": 1.5e5, "10 kB/s": 1e4}
QUICK, SLOWER, SLOWEST = BANDWIDTHS
WITHIN = 0.2


def quick() -> None:
    """The front is what no other cut beats, by brute force; states cross the wire bit by bit."""
    import torch

    from pointsman.depth.splitting import Cut, Link, Pipeline, front, predict
    from pointsman.depth.splitting.wire import pack, unpack

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        pairs = torch.randint(1, 6, (12, 2), generator=generator).tolist()
        kept = front([Pipeline(str(at), a, b) for at, (a, b) in enumerate(pairs)]).points
        by_hand = {
            (a, b)
            for a, b in pairs
            if not any(x <= a and y >= b and (x, y) != (a, b) for x, y in pairs)
        }
        must({(p.cost, p.quality) for p in kept} == by_hand, "the front is the undominated set")
    cut = Cut("cut", 1, first=0.1, second=0.3, sent=2000, returned=500)
    found = predict(cut, Link(1000, 0.05), 8)
    must(abs(found.latency - 2.95) < 1e-12, "a batch alone pays for everything in turn")
    must(found.throughput == 4.0, "of many batches the slowest stage sets the pace")
    x = torch.randn(3, 4, generator=generator)
    _, back, _ = unpack(bytearray().join(pack("state", {"x": x, "kept": (None, x)}))[8:])
    must(torch.equal(back["x"], x), "states arrive as they are")


def full(seed: int) -> Figures:
    """Predicted fronts on three lines, and measured against predicted on two of them."""
    from pointsman.depth.splitting import Device, Link, front, measure_cuts, predict, profile

    network, x = _network(seed)
    first, second = Device(FIRST), Device(SECOND)
    cuts = profile(network, x, first=first, second=second)
    found: dict[str, float] = {}
    for name, bandwidth in BANDWIDTHS.items():
        link = Link(bandwidth, ROUND_TRIP)
        predicted = [predict(cut, link, BATCH) for cut in cuts]
        best = min(predicted, key=lambda p: p.latency)
        sent = next(cut.sent for cut in cuts if cut.name == best.cut)
        points = front(predicted).points
        found[f"{name}: cuts on the front"] = len(points)
        found[f"{name}: kB sent by the quickest cut"] = sent / 1000
        found[f"{name}: latency of the quickest, ms"] = 1000 * best.latency
        found[f"{name}: inputs/s of the busiest"] = points[-1].quality
        if name == SLOWEST:
            continue
        ends = ["input", "output"] if name == QUICK else []
        chosen = list(dict.fromkeys([*ends, *(str(point.knob) for point in points)]))
        measured = measure_cuts(
            network, x, link, cuts=chosen, first=first, second=second, batches=4, repeats=2
        )
        found |= {f"{name}: {key}": value for key, value in _errors(measured, predicted).items()}
    return found


def _errors(measured: "Sequence[Pipeline]", predicted: "Sequence[Pipeline]") -> dict[str, float]:
    """Largest and mean relative errors over the measured cuts."""
    expected = {p.cut: p for p in predicted}
    late = [abs(p.latency / expected[p.cut].latency - 1) for p in measured]
    rate = [abs(p.throughput / expected[p.cut].throughput - 1) for p in measured]
    return {
        "cuts measured": len(measured),
        "largest error of latency": max(late),
        "mean error of latency": sum(late) / len(late),
        "largest error of throughput": max(rate),
        "mean error of throughput": sum(rate) / len(rate),
    }


def _network(seed: int) -> "tuple[Trunk, torch.Tensor]":
    """A convolution network of eleven blocks, and a batch."""
    import torch
    from torch import nn

    from pointsman.depth.trunks import trunk_of

    generator = torch.Generator().manual_seed(seed)
    wide = [8 + 4 * int(torch.randint(3, (), generator=generator)) for _ in range(2)]
    sizes = [3, wide[0], 2 * wide[1], 32, 128, 128]
    blocks: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for at, (before, after) in enumerate(pairwise(sizes)):
            blocks += [nn.Conv2d(before, after, 3, padding=1)]
            blocks += [nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)) if at < 3 else nn.ReLU()]
        blocks += [nn.Sequential(nn.Flatten(), nn.Linear(128 * 16, 10))]
        x = torch.randn(BATCH, 3, 32, 32)
    return trunk_of(nn.Sequential(*blocks).eval(), x), x


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    sent = [mean(measurements, f"{name}: kB sent by the quickest cut") for name in BANDWIDTHS]
    falls = all(a > b for a, b in pairwise(sent))
    wide = all(figures[f"{QUICK}: cuts on the front"] >= 2 for figures in measurements)
    errors = [
        mean(measurements, f"{name}: largest error of {what}")
        for name in (QUICK, SLOWER)
        for what in ("latency", "throughput")
    ]
    return falls and wide and max(errors) <= WITHIN


CLAIM = Claim(
    slug="paretopipe",
    paper="Where to Split? A Pareto-Front Analysis of DNN Partitioning for Edge Inference",
    year=2026,
    arxiv="2601.08025",
    level="depth",
    claim="Where to cut a network between two devices is a front of latency against throughput "
    "that moves with the line between them, and a model of compute, bytes and delay predicts it.",
    baseline="Everything on either device, which are two of the cuts; and the cost model, against "
    "which two real processes are measured.",
    criterion="On every seed the predicted front has at least two cuts on the 1 MB/s line; the "
    "bytes that the quickest cut sends fall, in the mean over the seeds, from 1 MB/s to 150 kB/s "
    "to 10 kB/s; and the largest error of any measured cut on the two quicker lines, in latency "
    "and in throughput, is at most 20% of the prediction in the mean over the seeds.",
    quick=quick,
    full=full,
    decide=decide,
    composition="trunk · profile of all cuts · cost model · two processes over a shaped line · "
    "Pareto front",
    entry="pointsman.depth.measure_cuts",
    key={
        "cuts on the front": "1 MB/s: cuts on the front",
        "error, latency": "1 MB/s: largest error of latency",
        "error, throughput": "1 MB/s: largest error of throughput",
    },
)
