"""What makes a network elastic: modules with choices, and declarations that put them there."""

from pointsman.supernet.elastic.choices import (
    Bits,
    Declaration,
    Depth,
    Experts,
    Kernel,
    Operation,
    Skip,
)
from pointsman.supernet.elastic.dial import Dial, Elastic
from pointsman.supernet.elastic.one_of import OneOf
from pointsman.supernet.elastic.parts import Blocks, Cut, Setting
from pointsman.supernet.elastic.quantised import Quantised
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.elastic.widths import Heads, NamedWidth, Width

__all__ = [
    "Bits",
    "Blocks",
    "Cut",
    "Declaration",
    "Depth",
    "Dial",
    "Elastic",
    "Experts",
    "Heads",
    "Kernel",
    "NamedWidth",
    "OneOf",
    "Operation",
    "Quantised",
    "Setting",
    "Skip",
    "Sliced",
    "Width",
]
