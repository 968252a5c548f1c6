"""Networks with several paths: columns of different depth, a branch per task, competing rules."""

from pointsman.depth.paths.branch_search import search_branches
from pointsman.depth.paths.branching import BranchedNetwork, BranchingNetwork, Tree
from pointsman.depth.paths.choice import gumbel_choice
from pointsman.depth.paths.fractal import FractalBlock, FractalNetwork
from pointsman.depth.paths.join import mean_join, survivors
from pointsman.depth.paths.production import Applied, ProductionSystem, RuleBank
from pointsman.depth.paths.units import convolution_unit, dense_unit, fractalnet

__all__ = [
    "Applied",
    "BranchedNetwork",
    "BranchingNetwork",
    "FractalBlock",
    "FractalNetwork",
    "ProductionSystem",
    "RuleBank",
    "Tree",
    "convolution_unit",
    "dense_unit",
    "fractalnet",
    "gumbel_choice",
    "mean_join",
    "search_branches",
    "survivors",
]
