"""Decide, for every input, which computation to run, and prove what that saves."""

__version__ = "0.1.0"
