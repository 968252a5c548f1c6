"""The main job: data in, every way to spend less tried, one chart, one certified pick."""

from pointsman.compare.data import Dataset, Part
from pointsman.compare.files import load
from pointsman.compare.policy import Policy, load_policy
from pointsman.compare.request import Request
from pointsman.compare.run import compare

__all__ = ["Dataset", "Part", "Policy", "Request", "compare", "load", "load_policy"]
