"""Decoding with causal language models whose tokens need not go through every layer."""
