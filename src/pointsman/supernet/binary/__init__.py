"""Binary networks: weights of +1 and -1, and outputs that reuse what other outputs summed up."""

from pointsman.supernet.binary.layers import Binary, make_binary, sign
from pointsman.supernet.binary.reuse import Reused, reuse
from pointsman.supernet.binary.spanning_tree import SpanningTree, TreeDistance, spanning_tree

__all__ = [
    "Binary",
    "Reused",
    "SpanningTree",
    "TreeDistance",
    "make_binary",
    "reuse",
    "sign",
    "spanning_tree",
]
