"""Scores for property tests: continuous ones, ones full of ties, and holes of -inf."""

import torch
from hypothesis import strategies as st


def make_scores(seed, inputs, branches, ties=False, holes=0.0):
    generator = torch.Generator().manual_seed(seed)
    if ties:
        scores = torch.randint(-2, 3, (inputs, branches), generator=generator).double()
    else:
        scores = 2 * torch.randn(inputs, branches, generator=generator, dtype=torch.float64)
    hidden = torch.rand(inputs, branches, generator=generator) < holes
    return scores.masked_fill(hidden, -torch.inf)


EITHER = st.booleans()


def scores(max_inputs=8, max_branches=6, *, ties=EITHER, holes=(0.0, 0.3, 0.8)):
    """Strategy for scores (T, E) in float64, T from 0 and E from 1."""
    return st.builds(
        make_scores,
        seed=st.integers(0, 2**31),
        # sampled_from draws evenly; integers would spend a third of the examples on no input.
        inputs=st.sampled_from(range(max_inputs + 1)),
        branches=st.sampled_from(range(1, max_branches + 1)),
        ties=ties,
        holes=st.sampled_from(holes),
    )


def rows(route):
    """Branches of each input, in order, as lists."""
    return [route.branches[route.inputs == t].tolist() for t in range(route.num_inputs)]


def eligible(scores):
    """How many branches each input may take."""
    return (scores > -torch.inf).sum(1)
