"""PC-DARTS: a quarter of the channels goes through the mixed operations.

Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search" (2019,
arXiv 1907.05737).

On each edge the first C / K channels run through every operation and are mixed, the rest passes by,
and channels are shuffled; edges into a node are weighed by a softmax of their own, learned with the
operations. The part is `supernet.relax.PartialChannels`.

What was settled:
- The space of 125 cells on noisy digits: 8 channels, K = 4. Every edge of the cell stays, as in
  DARTS with two inputs a node, so edge shares steady the search and choose nothing.
- The paper freezes the architecture for 15 of 50 epochs: here for the same share of the updates.
- What a step costs is measured where it matters more than calls do, on a cell of 64 channels:
  activations kept for backward, and processor time of forward and backward, in turns.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

PARTS = 4
FROZEN = 0.3
RUNS = 2
WIDE = 64


def _edge(channels: int, parts: int, name: str) -> "nn.Module":
    from pointsman.claims.architectures import operations
    from pointsman.supernet.elastic.one_of import OneOf
    from pointsman.supernet.relax import PartialChannels

    return PartialChannels(OneOf(name, operations(channels // parts)), parts)


def quick() -> None:
    """K = 1 with equal shares is DARTS up to a factor; activations kept fall to about 1 / K."""
    from functools import partial

    import torch
    from torch.testing import assert_close

    from pointsman.claims.architectures import EDGES, Cell
    from pointsman.claims.relaxed_cells import stored
    from pointsman.supernet.relax import Node, Relaxation, softmax_gate
    from pointsman.supernet.supernet import Supernet

    torch.manual_seed(0)
    x = torch.rand(4, WIDE, 4, 4)
    whole = Supernet(Cell({name: _edge(WIDE, 1, name) for name in EDGES}))
    plain, weighed = (
        Relaxation(whole, nodes=[Node(("0-2", "1-2"))], edge_gate=gate, spread=spread)
        for gate, spread in ((None, 0.0), (softmax_gate, 0.0))
    )
    plain.mix(whole)
    of_darts = whole(x)
    weighed.mix(whole)
    assert_close(whole(x), of_darts / 2)  # each of two edges weighs a half
    partly = Supernet(Cell({name: _edge(WIDE, PARTS, name) for name in EDGES}))
    Relaxation(partly).mix(partly)
    plain.mix(whole)
    share = stored(partly, partial(partly, x)) / stored(whole, partial(whole, x))
    must(share < 0.5, f"activations kept fall to about 1 / {PARTS}, got {share:.2f}")


def full(seed: int) -> Figures:
    """Accuracy of what both searches derive, and what a step costs."""
    from functools import partial

    from pointsman.claims.architectures import CELL_CHANNELS
    from pointsman.claims.relaxed_cells import NEVER, UPDATES, Search
    from pointsman.supernet.relax import Node, Relaxation, softmax_gate

    ours, theirs = [], []
    for run in range(RUNS):
        search = Search(seed, run)
        theirs.append(search.accuracy(search.first_order()[1].derive()))
        supernet = search.supernet(partial(_edge, CELL_CHANNELS, PARTS))
        node = Node(("0-2", "1-2"))
        relaxation = Relaxation(
            supernet, nodes=[node], edge_gate=softmax_gate, never=NEVER, seed=search.seed
        )
        search.relaxed(supernet, relaxation, warm_up=int(FROZEN * UPDATES))
        ours.append(search.accuracy(relaxation.derive()))
    return {
        "partial channels: accuracy": sum(ours) / RUNS,
        "DARTS: accuracy": sum(theirs) / RUNS,
        **_step_costs(),
    }


def _step_costs() -> Figures:
    """Of a cell with 64 channels, as shares of what all channels take."""
    import time
    from functools import partial

    import torch

    from pointsman.claims.architectures import EDGES, Cell
    from pointsman.claims.relaxed_cells import stored
    from pointsman.supernet.relax import Relaxation
    from pointsman.supernet.supernet import Supernet

    x = torch.rand(48, WIDE, 8, 8, generator=torch.Generator().manual_seed(0))
    nets: list[Supernet] = []
    seconds: tuple[list[float], list[float]] = ([], [])
    for parts in (1, PARTS):
        nets.append(Supernet(Cell({name: _edge(WIDE, parts, name) for name in EDGES})))
        Relaxation(nets[-1]).mix(nets[-1])
    kept = [stored(net, partial(net, x)) for net in nets]
    for _ in range(5):
        for net, times in zip(nets, seconds, strict=True):
            relaxation = Relaxation(net)
            relaxation.mix(net)
            start = time.process_time()
            net(x).sum().backward()
            times.append(time.process_time() - start)
    return {
        "partial channels: activations kept, share of DARTS": kept[1] / kept[0],
        "partial channels: time of a step, share of DARTS": min(seconds[1]) / min(seconds[0]),
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    shares = ("activations kept", "time of a step")
    return mean(measurements, "partial channels: accuracy") >= mean(
        measurements, "DARTS: accuracy"
    ) and all(
        mean(measurements, f"partial channels: {what}, share of DARTS") <= 0.5 for what in shares
    )


CLAIM = Claim(
    slug="pc-darts",
    paper="PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search",
    year=2019,
    arxiv="1907.05737",
    level="supernet",
    claim="Searching on a quarter of the channels finds architectures at least as good as DARTS at "
    "a fraction of its memory and time.",
    baseline="First-order DARTS with equal updates, on the same data and space.",
    criterion="Mean table accuracy of the cells derived in six searches is at least that of "
    "first-order DARTS, and in a cell of 64 channels a step keeps at most half of its activations "
    "and takes at most half of its time.",
    quick=quick,
    full=full,
    decide=decide,
    composition="partial channels · softmax gates on operations and edges · alternating loop with "
    "a warm-up",
    entry="pointsman.supernet.relax.PartialChannels",
    key={
        "partial": "partial channels: accuracy",
        "DARTS": "DARTS: accuracy",
        "time": "partial channels: time of a step, share of DARTS",
    },
)
