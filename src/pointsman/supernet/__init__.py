"""Architecture level: train once, serve every budget.

`make_elastic` puts choices into any network; a `Supernet` runs and extracts its subnets; what
trains, finds, judges and shrinks them is in the subpackages.
"""

from pointsman.supernet.certified import genotype_of, subnet_frontier
from pointsman.supernet.costs import Count, count_mflops, count_parameters, measure_subnets
from pointsman.supernet.export import export_onnx, export_program
from pointsman.supernet.making import broken_choices, magnitude, make_elastic
from pointsman.supernet.nested import (
    Nested,
    PrefixBatchNorm2d,
    PrefixConv2d,
    PrefixLayerNorm,
    PrefixLinear,
)
from pointsman.supernet.recalibration import recalibrate
from pointsman.supernet.saved import load_subnet, save_subnet
from pointsman.supernet.space import Choice, Genotype, Space
from pointsman.supernet.supernet import Supernet

__all__ = [
    "Choice",
    "Count",
    "Genotype",
    "Nested",
    "PrefixBatchNorm2d",
    "PrefixConv2d",
    "PrefixLayerNorm",
    "PrefixLinear",
    "Space",
    "Supernet",
    "broken_choices",
    "count_mflops",
    "count_parameters",
    "export_onnx",
    "export_program",
    "genotype_of",
    "load_subnet",
    "magnitude",
    "make_elastic",
    "measure_subnets",
    "recalibrate",
    "save_subnet",
    "subnet_frontier",
]
