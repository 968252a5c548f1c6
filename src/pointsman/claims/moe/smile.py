"""SMILE: which node, then which device there, by two routers and in two small exchanges.

He et al., "SMILE: Scaling Mixture-of-Experts with Efficient Bi-level Routing" (2022, arXiv
2212.05191).

With p = softmax(x W_p) over n nodes and q = softmax(x W_q) over the m devices of a node, a token
goes to node argmax p and device argmax q there, and its answer is weighted by p q. A device then
exchanges messages with n - 1 nodes and m - 1 neighbours instead of n m - 1 devices. A balancing
loss for each level keeps nodes and places equally used.

What was settled:
- W_q is shared by all nodes, so that n + m rows replace n m; the paper was not clear to us here.
- The paper's 2.5 times the throughput on 16 nodes of 8 GPUs cannot be measured here. Held is what
  it rests on, counted from the trained layer's routes on a simulated cluster of 4 nodes of 4
  devices, and that quality does not suffer. One row costs as much between nodes as before: with one
  expert a token, what falls is the number of messages and not of bytes.
- The flat layer has one router over 16 experts and one balancing loss of the same weight, 0.01.
- 12 clusters of tokens with a linear map each, tokens at home on the devices in turns. Messages
  take 10 microseconds to begin and rows are 2 KiB; links carry 200 and 25 GB/s.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.moe import MoE
    from pointsman.moe.parallel import Traffic

NODES, DEVICES = 4, 4
CLUSTERS, WIDTH, HIDDEN = 12, 16, 16
UPDATES = 1000


def quick() -> None:
    """One node or one device a node is top-1 of a flat layer; the gate is the product p q."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.balance import switch
    from pointsman.moe.systems.two_level import node_balance, place_balance, smile
    from pointsman.select import top_k

    torch.manual_seed(0)
    x = torch.randn(256, WIDTH)
    layer = smile(WIDTH, HIDDEN, NODES, DEVICES)
    route = layer(x)[1].route
    p = layer.router.groups(x).softmax(dim=1)  # type: ignore[operator]
    q = layer.router.experts(x).softmax(dim=1)  # type: ignore[operator]
    must(torch.equal(route.branches // DEVICES, p.argmax(dim=1)), "the best node")
    must(torch.equal(route.branches % DEVICES, q.argmax(dim=1)), "the best place in it")
    assert_close(route.weights, p.amax(dim=1) * q.amax(dim=1))
    for nodes, devices, level in ((1, 8, "experts"), (8, 1, "groups")):
        layer = smile(WIDTH, HIDDEN, nodes, devices)
        _, routing = layer(x)
        scores = getattr(layer.router, level)(x)
        flat = top_k(scores, 1, renormalize=False)
        must(torch.equal(routing.route.branches, flat.branches), "one level is top-1")
        assert_close(routing.route.weights, flat.weights)
        losses = [node_balance(routing, nodes=nodes), place_balance(routing, nodes=nodes)]
        trivial = losses.pop(0 if nodes == 1 else 1)
        assert_close(trivial, torch.ones(()))
        assert_close(losses[0], switch(routing))
    _check_peers()


def _check_peers() -> None:
    """Messages of uniform traffic are those that the two exchanges allow."""
    import torch

    from pointsman.select import top_k

    scores = torch.randn(20_000, NODES * DEVICES, generator=torch.Generator().manual_seed(0))
    flat, two = _traffic(top_k(scores, 1, renormalize=False))
    must(flat.peers() == NODES * DEVICES - 1, "flat: every other device")
    must(two.peers() == NODES - 1 + DEVICES - 1, "bi-level: nodes, then neighbours")
    must(flat.messages("inter") == NODES * DEVICES * (NODES - 1) * DEVICES, "flat messages")
    must(two.messages("inter") == NODES * DEVICES * (NODES - 1), "bi-level messages")
    must(flat.rows("inter") == two.rows("inter"), "with one expert a token, rows are the same")


def _traffic(route: object) -> "tuple[Traffic, Traffic]":
    import numpy as np

    from pointsman.moe.parallel import Cluster, flat_traffic, two_level_traffic
    from pointsman.route import Route

    assert isinstance(route, Route)
    cluster = Cluster(NODES, DEVICES)
    places = np.arange(cluster.devices), np.arange(route.num_inputs) % cluster.devices
    return flat_traffic(route, *places, cluster), two_level_traffic(route, *places, cluster)


def full(seed: int) -> Figures:
    """Error, balance of each level and messages of a bi-level and of a flat layer."""
    import torch

    from pointsman.claims import worlds
    from pointsman.moe.systems.two_level import smile

    mixture = worlds.mixture(seed, clusters=CLUSTERS, width=WIDTH)
    found: dict[str, float] = {}
    for row in ("bi-level", "flat"):
        torch.manual_seed(seed)
        layer = smile(WIDTH, HIDDEN, NODES, DEVICES) if row == "bi-level" else _flat()
        worlds.regress(layer, mixture, seed=seed, updates=UPDATES)
        route = layer(mixture.draw(8192, seed=seed + 10_000).x)[1].route.detach()
        traffic = _traffic(route)[int(row == "bi-level")]
        load = route.load().reshape(NODES, DEVICES)
        found |= {
            f"{row}: relative error": worlds.relative_error(layer, mixture, seed=seed),
            f"{row}: violation over nodes": worlds.max_violation(load.sum(dim=1)),
            f"{row}: violation over places": worlds.max_violation(load.sum(dim=0)),
            f"{row}: peers of a device": traffic.peers(),
            f"{row}: messages between nodes": traffic.messages("inter"),
            f"{row}: rows between nodes": traffic.rows("inter"),
            f"{row}: microseconds of dispatch": 1e6 * traffic.seconds(2048, start=1e-5),
        }
    return found


def _flat() -> "MoE":
    from functools import partial

    from torch import nn

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.balance import switch
    from pointsman.select import top_k

    experts = NODES * DEVICES
    return MoE(
        nn.Linear(WIDTH, experts, bias=False),
        partial(top_k, k=1, renormalize=False),
        FeedForwardExperts(experts, WIDTH, HIDDEN, activation="relu"),
        balance=((0.01, switch),),
    )


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    return (
        of("bi-level", "relative error") <= 1.15 * of("flat", "relative error")
        and of("bi-level", "violation over nodes") < 0.5
        and of("bi-level", "violation over places") < 0.5
        and of("bi-level", "peers of a device") <= NODES - 1 + DEVICES - 1
        and of("bi-level", "messages between nodes") < of("flat", "messages between nodes")
    )


CLAIM = Claim(
    slug="smile",
    paper="SMILE: Scaling Mixture-of-Experts with Efficient Bi-level Routing",
    year=2022,
    arxiv="2212.05191",
    level="moe",
    claim="Choosing the node and then the device there makes far fewer messages between nodes than "
    "choosing among all devices at once, and learns as well.",
    baseline="A flat top-1 layer with as many experts and one balancing loss of the same weight.",
    criterion="With 4 nodes of 4 devices, in the mean over the seeds: the error is at most 1.15 "
    "times that of the flat layer, the fullest node and the fullest place have less than 1.5 times "
    "the mean load, no device has more than 6 peers, and there are fewer messages between nodes.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.two_level.smile",
    composition="two-level router (nodes, shared places) · best of the best group · ReLU "
    "feed-forward experts · switch losses over nodes and places",
    key={
        "error, bi-level": "bi-level: relative error",
        "error, flat": "flat: relative error",
        "messages, bi-level": "bi-level: messages between nodes",
        "messages, flat": "flat: messages between nodes",
    },
)
