"""Models of quality: what a search believes of genotypes that were not evaluated."""

from pointsman.supernet.predictors.gaussian import GaussianProcess
from pointsman.supernet.predictors.quality import QualityPredictor, regressions

__all__ = ["GaussianProcess", "QualityPredictor", "regressions"]
