"""Routers: what each model would score and cost, predicted before any is called."""

from pointsman.pool.routers.blend import Blend
from pointsman.pool.routers.constant import Constant
from pointsman.pool.routers.costs import Costs
from pointsman.pool.routers.forest import Forest
from pointsman.pool.routers.gradient_boosting import GradientBoosting
from pointsman.pool.routers.k_means import KMeans
from pointsman.pool.routers.linear import Linear
from pointsman.pool.routers.matrix_factorization import MatrixFactorization
from pointsman.pool.routers.multilayer_perceptron import MultilayerPerceptron
from pointsman.pool.routers.nearest_neighbours import NearestNeighbours
from pointsman.pool.routers.pairwise import Pairwise
from pointsman.pool.routers.per_task import PerTask
from pointsman.pool.routers.prompt_length import PromptLength
from pointsman.pool.routers.router import Prediction, Router
from pointsman.pool.routers.skill_profile import SkillProfile

__all__ = [
    "Blend",
    "Constant",
    "Costs",
    "Forest",
    "GradientBoosting",
    "KMeans",
    "Linear",
    "MatrixFactorization",
    "MultilayerPerceptron",
    "NearestNeighbours",
    "Pairwise",
    "PerTask",
    "Prediction",
    "PromptLength",
    "Router",
    "SkillProfile",
]
