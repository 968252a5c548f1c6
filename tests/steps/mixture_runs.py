"""A small mixture that the tests of this level sample from."""

import torch

from pointsman.cost import Cost
from pointsman.steps.mixtures import EVERY, GaussianMixture
from pointsman.steps.samplers import DDIM
from pointsman.steps.sampling import Evaluation, sample
from pointsman.steps.schedules import cosine

SCHEDULE = cosine()
MIXTURE = GaussianMixture(
    torch.tensor([[2.0, 0.0], [-2.0, 0.5], [0.0, -2.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.2, 0.4], dtype=torch.float64),
    torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64),
    torch.tensor([0, 1, 1]),
)
CONDITIONAL = Evaluation("conditional", MIXTURE.noise(SCHEDULE), Cost(2.0, "MFLOPs"))
PAIR = [CONDITIONAL, CONDITIONAL.under("unconditional", EVERY)]


def start(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64), torch.arange(n) % 2


def run(policy, steps=12, *, n=6, seed=0, sampler=None, evaluations=PAIR, **more):
    x, y = start(n, seed)
    return sample(
        evaluations,
        policy,
        sampler or DDIM(SCHEDULE),
        x,
        SCHEDULE.times(steps),
        condition=y,
        **more,
    )
