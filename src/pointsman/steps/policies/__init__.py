"""Policies: which evaluations a sampler leaves out, and what stands in for them."""
