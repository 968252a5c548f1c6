"""MST-compression: outputs of a binary layer computed from one another, along a shortest tree.

"MST-compression: Compressing and Accelerating Binary Neural Networks with Minimum Spanning Tree"
(2023, arXiv 2308.13735). An output of a binary layer differs from another one in the positions
where their weights of +1 and -1 differ, and only there. Along a minimum spanning tree of these
distances all outputs together cost the length of the tree and one full output. Training adds that
length to the loss, so that the outputs move together.

The sheet behind this is rated medium. Certain: the identity, the tree with its centre as the root,
the cost, and that its length is a term of the loss. Reconstructed: the size of the term, how often
the tree is rebuilt (every 10 updates here) and its gradient, through the sign; depth is reported,
not trained.

What was settled:
- Digits with noise of 0.3; 64-128 whole, then two binary layers 128-128 with binary inputs, then
  128-10 whole, with batch normalisation after each hidden layer; 600 updates.
- The term weighs 1, set on seed 100 out of 1, 2 and 4 before any other seed was run.
- The plain network is computed along its own trees as well: the baseline has the reuse, and lacks
  the training for it.
- Too strong a term would make all outputs equal: a weight of 50 stands beside it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.claims.testbeds import Digits

UNITS, UPDATES, NOISE = 128, 600, 0.3
WEIGHT, TOO_MUCH = 1.0, 50.0


def quick() -> None:
    """Outputs along the tree equal direct products, for fewer operations on noisy copies."""
    import torch

    from pointsman.supernet.binary import Reused, sign, spanning_tree

    generator = torch.Generator().manual_seed(0)
    random = sign(torch.randn(32, 72, generator=generator))
    flipped = torch.rand(32, 72, generator=generator) < 0.1
    copies = random[:4].repeat(8, 1) * torch.where(flipped, -1.0, 1.0)
    x = torch.randint(0, 5, (10, 72), generator=generator).float()
    for signs in (random, copies):
        must(torch.equal(Reused(signs)(x), x @ signs.T), "the tree gives the products exactly")
    free, alike = (spanning_tree(signs).operations for signs in (random, copies))
    must(free < 0.5 * 32 * 72, f"random weights cost less than half of 2,304, got {free}")
    must(alike < 0.6 * free, f"noisy copies of four cost less still, got {alike}")


def full(seed: int) -> Figures:
    """Test accuracy, operations and depth of the binary layers, without and with the term."""
    from pointsman.claims import testbeds
    from pointsman.supernet.binary import Binary, spanning_tree

    data = testbeds.digits(seed, NOISE)
    found = {}
    for row, weight in (("plain", 0.0), ("tree", WEIGHT), ("too much", TOO_MUCH)):
        net = _trained(data, seed, weight)
        trees = [spanning_tree(m.signs) for m in net.modules() if isinstance(m, Binary)]
        found[f"{row}: accuracy"] = testbeds.accuracy(net(data.test.x), data.test.y)
        found[f"{row}: operations"] = float(sum(tree.operations for tree in trees))
        found[f"{row}: depth"] = float(max(tree.depth for tree in trees))
        found[f"{row}: share of direct products"] = found[f"{row}: operations"] / (
            len(trees) * UNITS**2
        )
    return found


def _trained(data: "Digits", seed: int, weight: float) -> "nn.Module":
    """A binary network; the weight of the trees' mean distance in its loss."""
    import torch
    from torch import nn

    from pointsman.claims import testbeds
    from pointsman.supernet.binary import Binary, TreeDistance, make_binary

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [
            layer
            for inputs in (64, UNITS, UNITS)
            for layer in (nn.Linear(inputs, UNITS, bias=False), nn.BatchNorm1d(UNITS))
        ]
        net = make_binary(nn.Sequential(*hidden, nn.ReLU(), nn.Linear(UNITS, 10)), keep=["0", "7"])
    term = TreeDistance([layer for layer in net.modules() if isinstance(layer, Binary)])

    def loss(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own = testbeds.cross_entropy(module, x, y)
        return own + weight * term() if weight else own

    testbeds.fit(
        net, data.train, seed=seed, updates=UPDATES, loss=loss, rate=1e-2, decay=0.0, noise=NOISE
    )
    return net


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    operations = mean(measurements, "tree: operations") / mean(measurements, "plain: operations")
    lost = mean(measurements, "plain: accuracy") - mean(measurements, "tree: accuracy")
    return operations <= 0.7 and lost <= 0.015


CLAIM = Claim(
    slug="mst-compression",
    paper="MST-compression: Compressing and Accelerating Binary Neural Networks with Minimum "
    "Spanning Tree",
    year=2023,
    arxiv="2308.13735",
    level="supernet",
    claim="Binary layers whose outputs are computed from one another along a minimum spanning "
    "tree, trained for a short tree, need far fewer operations at nearly the same accuracy.",
    baseline="The same binary network without the term, computed along its own trees; direct "
    "products; a term that is far too strong.",
    criterion="In the mean over the seeds: the trees of the network trained with the term cost at "
    "most 70% of the operations of the plain binary network's trees, at an accuracy on test at "
    "most 1.5 points lower.",
    quick=quick,
    full=full,
    decide=decide,
    composition="signs with straight-through gradients · minimum spanning tree of the outputs · "
    "its length as a term of the loss",
    entry="pointsman.supernet.binary.TreeDistance",
    key={
        "plain": "plain: accuracy",
        "tree": "tree: accuracy",
        "plain operations": "plain: share of direct products",
        "tree operations": "tree: share of direct products",
    },
    note="The trees get deeper by the term (25 steps instead of 17). A weight 50 times as large "
    "does not collapse here: it costs another half point.",
)
