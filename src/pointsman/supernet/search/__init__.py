"""Search: engines that propose genotypes, and what runs, records and resumes them."""

from pointsman.supernet.search.engine import Engine, Proposals
from pointsman.supernet.search.failures import breaking_options
from pointsman.supernet.search.hypervolume import hypervolume, hypervolume_share
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.search.run import search

__all__ = [
    "Engine",
    "Evaluation",
    "Problem",
    "Proposals",
    "breaking_options",
    "front",
    "hypervolume",
    "hypervolume_share",
    "search",
]
