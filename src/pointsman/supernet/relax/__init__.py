"""Continuous relaxations of architecture search: options mixed by weights that are learned."""
