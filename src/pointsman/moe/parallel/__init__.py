"""Experts on many devices: exchange, placement, plans."""
