"""Published results checked at small scale: one short file a system, by level."""

from pointsman.claims.catalogue import CLAIMS, find
from pointsman.claims.frame import Claim, Figures, must
from pointsman.claims.measuring import Measurement, Standing, measure

__all__ = ["CLAIMS", "Claim", "Figures", "Measurement", "Standing", "find", "measure", "must"]
