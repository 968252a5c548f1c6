"""What proposes genotypes: by chance, by evolution, from models, from learned distributions.

Each is a function of a problem and a seed. Settings are keywords, so that
`partial(nsga2, population=20)` is an engine too.
"""

from pointsman.supernet.search.engines.conservative import conservative
from pointsman.supernet.search.engines.diffusion import diffusion_search
from pointsman.supernet.search.engines.evolution import nsga2
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.engines.genetic import evolve_lists
from pointsman.supernet.search.engines.linas import linas
from pointsman.supernet.search.engines.optuna_samplers import optuna_nsga2, sampled, tpe
from pointsman.supernet.search.engines.random_search import random_search
from pointsman.supernet.search.engines.reinforce import reinforce

__all__ = [
    "conservative",
    "diffusion_search",
    "evolve_lists",
    "front_search",
    "linas",
    "nsga2",
    "optuna_nsga2",
    "random_search",
    "reinforce",
    "sampled",
    "tpe",
]
