"""A simulated cluster: devices in nodes, with quick links inside a node and slow ones between.

Legend: G devices, of all nodes together.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cluster:
    """Nodes of equally many devices; device d lies in node d // per_node.

    Args:
        nodes: how many.
        per_node: devices of one node.
        intra: bytes a second from one device to another of its node.
        inter: bytes a second from one device to another node's.

    Raises:
        InputError: a number below one, or a bandwidth that is not above 0.
    """

    nodes: int
    per_node: int
    intra: float = 200e9
    inter: float = 25e9

    def __post_init__(self) -> None:
        if min(self.nodes, self.per_node) < 1 or not (self.intra > 0 and self.inter > 0):
            raise InputError(
                "a cluster needs a node and a device in it, and bandwidths above 0, got "
                f"{self.nodes} nodes of {self.per_node}, {self.intra} and {self.inter} bytes/s"
            )

    @property
    def devices(self) -> int:
        """G."""
        return self.nodes * self.per_node

    @property
    def uniform(self) -> bool:
        """Whether all links are alike, so that devices may be exchanged freely."""
        return self.nodes == 1 or self.per_node == 1 or self.intra == self.inter

    def node_of(self, device: Ids) -> Ids:
        """The node of each device."""
        return device // self.per_node

    def bandwidth(self) -> Numbers:
        """(G, G) bytes a second from device to device; infinite on the diagonal."""
        node_G = self.node_of(np.arange(self.devices))
        table = np.where(node_G[:, None] == node_G, self.intra, self.inter)
        np.fill_diagonal(table, np.inf)
        return table
