"""What dispatch sends over which links: straight to the experts, or by way of their nodes.

Bi-level routing (He et al. 2022, "SMILE: scaling mixture-of-experts with efficient bi-level
routing", arXiv 2212.05191) sends a token to its node first and to its device there second, in two
small exchanges instead of one large. Here rows and messages are counted and links priced; the
exchange itself is not run.

Legend: T tokens, E experts, G devices.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from pointsman.errors import InputError
from pointsman.moe.parallel.cluster import Cluster, Ids, Numbers
from pointsman.route import Route

Level = Literal["inter", "intra"]


@dataclass(frozen=True, eq=False)
class Traffic:
    """What one dispatch sends.

    The way back, of the answers, is as much where sums are made on the way: each node adds up what
    its experts say of a token.

    Attributes:
        hops: for each exchange, (G, G) rows from device to device.
        cluster: that it runs on.
    """

    hops: tuple[Numbers, ...]
    cluster: Cluster

    def rows(self, level: Level) -> float:
        """Rows that pass between nodes ("inter"), or between devices of one ("intra").

        Raises:
            InputError: another level.
        """
        return float(sum((hop * self._links(level)).sum() for hop in self.hops))

    def messages(self, level: Level) -> int:
        """Pairs of devices that send each other anything at this level, over all exchanges."""
        return sum(int(((hop > 0) * self._links(level)).sum()) for hop in self.hops)

    def peers(self) -> int:
        """The most messages that one device sends."""
        off = 1 - np.eye(self.cluster.devices)
        return int(sum((hop > 0) * off for hop in self.hops).sum(axis=1).max())  # type: ignore[union-attr]

    def seconds(self, row_bytes: float, *, start: float = 0.0) -> float:
        """Exchanges in turn, each as long as its slowest device takes to send.

        Args:
            row_bytes: bytes of a row.
            start: seconds to begin one message.
        """
        bandwidth_GG = self.cluster.bandwidth()
        total = 0.0
        for hop in self.hops:
            sent = (hop > 0) & np.isfinite(bandwidth_GG)
            took = hop * row_bytes / bandwidth_GG + start * sent
            total += float(took.sum(axis=1).max())
        return total

    def _links(self, level: Level) -> Numbers:
        if level not in get_args(Level):
            raise InputError(f"level must be one of {', '.join(get_args(Level))}, got {level!r}")
        node_G = self.cluster.node_of(np.arange(self.cluster.devices))
        same = node_G[:, None] == node_G
        links = same & ~np.eye(len(node_G), dtype=np.bool_) if level == "intra" else ~same
        table: Numbers = links.astype(np.float64)
        return table


def flat_traffic(route: Route, device_of: Ids, home: Ids, cluster: Cluster) -> Traffic:
    """One exchange between all devices: one row for each pair of the route.

    Args:
        route: of T tokens to E experts.
        device_of: (E,) the device of each expert.
        home: (T,) the device of each token.
        cluster: of G devices.

    Raises:
        InputError: devices that do not fit the route or the cluster.
    """
    source, target, _ = _pairs(route, device_of, home, cluster)
    return Traffic((_table(source, target, cluster.devices),), cluster)


def two_level_traffic(route: Route, device_of: Ids, home: Ids, cluster: Cluster) -> Traffic:
    """Two exchanges: to the node, to the device of the same place there; then to the device.

    A token is sent to each node once, however many of its experts lie there, and inside the node
    once to each device. The first exchange is between devices of one place in their nodes, the
    second between those of one node.

    Args:
        route: of T tokens to E experts.
        device_of: (E,) the device of each expert.
        home: (T,) the device of each token.
        cluster: of G devices.

    Raises:
        InputError: devices that do not fit the route or the cluster.
    """
    source, target, token = _pairs(route, device_of, home, cluster)
    door = cluster.node_of(target) * cluster.per_node + source % cluster.per_node
    to_node = np.unique(np.stack([token, source, door]), axis=1)
    to_device = np.unique(np.stack([token, door, target]), axis=1)
    hops = tuple(_table(pairs[1], pairs[2], cluster.devices) for pairs in (to_node, to_device))
    return Traffic(hops, cluster)


def _table(source: Ids, target: Ids, devices: int) -> Numbers:
    flat = np.bincount(source * devices + target, minlength=devices * devices)
    table: Numbers = flat.reshape(devices, devices).astype(np.float64)
    return table


def _pairs(route: Route, device_of: Ids, home: Ids, cluster: Cluster) -> tuple[Ids, Ids, Ids]:
    """Source device, target device and token of each pair."""
    for name, devices, count in (
        ("device_of", device_of, route.num_branches),
        ("home", home, route.num_inputs),
    ):
        wrong = len(devices) and not 0 <= devices.min() <= devices.max() < cluster.devices
        if devices.shape != (count,) or wrong:
            raise InputError(
                f"{name} needs a device below {cluster.devices} for each of {count}, "
                f"got shape {devices.shape}"
            )
    token, expert = _numpy(route.inputs), _numpy(route.branches)
    return home[token], device_of[expert], token


def _numpy(ids: Tensor) -> Ids:
    return ids.numpy(force=True)
