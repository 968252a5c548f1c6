"""Networks as rows of blocks, whatever they are made of.

`trunk_of(model, example)` chooses among the kinds; see `trunk.Trunk` for what they have in common.
"""

from pointsman.depth.trunks.build import trunk_of
from pointsman.depth.trunks.sequential import SequentialTrunk
from pointsman.depth.trunks.traced import TracedTrunk
from pointsman.depth.trunks.transformers import TransformerTrunk, layers_of
from pointsman.depth.trunks.trunk import Trunk

__all__ = ["SequentialTrunk", "TracedTrunk", "TransformerTrunk", "Trunk", "layers_of", "trunk_of"]
