"""Training signals through a discrete choice, for every level."""
