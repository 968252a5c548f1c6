"""MetaPruning: a graph network rewrites networks so that pruning costs them less.

Liu et al., "Meta Pruning via Graph Metanetworks: A Meta Learning Framework for Network Pruning"
(2025, arXiv 2506.12041). The metanetwork is trained on a few trained networks: what it gives for
them must answer well, and be sparse by units. A network that it has not seen then takes one pass,
a little fine-tuning, and pruning by the norms of its units.

What was settled:
- Digits with noise of 0.3. Eight networks 64-48-48-10 with weights of their own, trained alike for
  300 updates; six teach the metanetwork, two are held out. All trainings see the train part only.
- Pruned are 60% of all hidden units, of both layers together, by the norm of all weights of a unit
  over its layer's mean. Before it every arm is fine-tuned for 24 updates (three passes), after it
  for as many again.
- Arms: the metanetwork's network; the network as it is (pruning by norm alone); and the network as
  it is, with the sparsity penalty added while it is fine-tuned, which is what a metanetwork must
  beat to be worth its training.
- Tried on seeds 100 and 101: strength of the penalty, steps, rate, and the scale of the changes,
  0.1 in place of the published 0.01, since the weights of so small networks are larger.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import nn

    from pointsman.claims.testbeds import Digits, Loss

UNITS, TEACHING, HELD_OUT = 48, 6, 2
UPDATES, TUNING, NOISE = 300, 24, 0.3
STEPS, STRENGTH, RATE, SCALE = 1000, 5e-3, 1e-2, 0.1
LEFT = 0.4  # of the hidden units
ARMS = ("metanetwork", "as it is", "penalty alone")


def quick() -> None:
    """Network and graph are one, and the metanetwork treats hidden units in any order alike."""
    import torch

    from pointsman.claims import testbeds
    from pointsman.supernet.channels import channel_groups, reorder
    from pointsman.supernet.pruning.metanetwork import Chain, MetaNetwork, rewrite

    net = testbeds.mlp(64, 12, 8, 10, seed=0)
    chain = Chain(net)
    weights = chain.weights(net, chain.graph(net))
    same = all(torch.equal(weights[name], value) for name, value in net.named_parameters())
    must(same, "a network comes back from its graph without loss")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        meta = MetaNetwork(chain.positions)
    groups = channel_groups(net, torch.zeros(1, 64))
    orders = {group: list(reversed(range(group.size))) for group in groups}
    one, other = reorder(rewrite(meta, net), orders), rewrite(meta, reorder(net, orders))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
    must(apart < 1e-5, f"the change follows the order of the units, {apart:.1e} apart")
    first, before = (next(module.parameters()) for module in (rewrite(meta, net), net))
    moved = float((first - before).detach().abs().max())
    must(0 < moved < 0.1, "an untrained metanetwork is near the identity")


def full(seed: int) -> Figures:
    """Test accuracy of the held-out networks in every arm: whole, pruned, and fine-tuned again."""
    import torch

    from pointsman.claims import testbeds
    from pointsman.supernet.pruning.metanetwork import rewrite, train_metanetwork

    data = testbeds.digits(seed, NOISE)
    nets = []
    for number in range(TEACHING + HELD_OUT):
        net = testbeds.mlp(64, UNITS, UNITS, 10, seed=100 * seed + number)
        testbeds.fit(net, data.train, seed=100 * seed + number, updates=UPDATES, noise=NOISE)
        nets.append(net)
    generator = torch.Generator().manual_seed(seed)

    def loss(run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(data.train.x), (256,), generator=generator)
        x = data.train.x[rows]
        x = x + NOISE * torch.randn(x.shape, generator=generator)
        return torch.nn.functional.cross_entropy(run(x), data.train.y[rows])

    meta = train_metanetwork(
        nets[:TEACHING], loss, steps=STEPS, strength=STRENGTH, rate=RATE, scale=SCALE, seed=seed
    )
    found: dict[str, float] = {}
    for net in nets[TEACHING:]:
        for arm in ARMS:
            start = rewrite(meta, net) if arm == "metanetwork" else net
            penalty = STRENGTH if arm == "penalty alone" else 0.0
            for when, accuracy in _arm(start, data, seed, penalty).items():
                name = f"{arm}: {when}"
                found[name] = found.get(name, 0.0) + accuracy / HELD_OUT
    return found


def _arm(net: "nn.Module", data: "Digits", seed: int, penalty: float) -> dict[str, float]:
    """Fine-tune, prune, fine-tune; accuracy on test after each."""
    import copy

    import torch

    from pointsman.claims import testbeds
    from pointsman.supernet.pruning import prune

    def accuracy(net: torch.nn.Module) -> float:
        with torch.no_grad():
            return testbeds.accuracy(net(data.test.x), data.test.y)

    net = copy.deepcopy(net)
    testbeds.fit(net, data.train, seed=seed, updates=TUNING, noise=NOISE, loss=_loss(net, penalty))
    found = {"whole": accuracy(net)}
    small = prune(net, data.train.x[:1], to=LEFT, of=_units_left).model
    found["pruned"] = accuracy(small)
    testbeds.fit(small, data.train, seed=seed, updates=TUNING, noise=NOISE)
    found["pruned, fine-tuned"] = accuracy(small)
    return found


def _loss(net: "nn.Module", penalty: float) -> "Loss":
    import torch

    from pointsman.claims.testbeds import cross_entropy
    from pointsman.supernet.pruning.metanetwork import Chain, Graph, sparsity

    if not penalty:
        return cross_entropy
    chain = Chain(net)

    def loss(module: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        still = chain.graph(module)
        edges = tuple(layer.weight[:, :, None] for _, layer in chain.layers)
        graph = Graph(still.nodes, edges, still.weighed)
        return cross_entropy(module, x, y) + penalty * sparsity(graph)

    return loss


def _units_left(small: "nn.Module", whole: "nn.Module", example: object) -> float:
    """Share of the hidden units that is left."""
    from pointsman.supernet.pruning.metanetwork import Chain

    left, all_ = (sum(Chain(net).channels[1:-1]) for net in (small, whole))
    return left / all_


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    rewritten = mean(measurements, "metanetwork: pruned")
    return (
        rewritten >= mean(measurements, "as it is: pruned") + 0.02
        and rewritten > mean(measurements, "penalty alone: pruned")
        and mean(measurements, "metanetwork: pruned, fine-tuned")
        >= mean(measurements, "as it is: pruned, fine-tuned")
    )


CLAIM = Claim(
    slug="metapruning",
    paper="Meta Pruning via Graph Metanetworks : A Meta Learning Framework for Network Pruning",
    year=2025,
    arxiv="2506.12041",
    level="supernet",
    claim="A graph network trained on a few networks rewrites one that it has not seen so that it "
    "loses less when it is pruned, with one pass and usual fine-tuning.",
    baseline="The same network pruned by norm after equal fine-tuning; and with the same sparsity "
    "penalty in its fine-tuning instead of the metanetwork.",
    criterion="Networks held out, 60% of their hidden units pruned, accuracy on test in the mean "
    "over the seeds: right after pruning, rewritten ones are at least 2 points above those as they "
    "are and above those fine-tuned with the penalty; after equal fine-tuning they are not below "
    "those as they are.",
    quick=quick,
    full=full,
    decide=decide,
    composition="network as a graph · message passing both ways · loss of the network given and "
    "sparsity by units · pruning by norm",
    entry="pointsman.supernet.pruning.metanetwork.train_metanetwork",
    key={
        "rewritten": "metanetwork: pruned",
        "as it is": "as it is: pruned",
        "penalty alone": "penalty alone: pruned",
        "rewritten, tuned": "metanetwork: pruned, fine-tuned",
    },
)
