"""Step level: samplers in which a policy decides, per step and per sample, what is evaluated."""

from pointsman.steps.absorbing import (
    TokenTransformer,
    Unmasking,
    all_hidden,
    clean_loss,
    even_times,
    expected_evaluations,
    hide_by_order,
    hide_by_rate,
)
from pointsman.steps.denoisers import Denoiser, fit_denoiser, noise_loss
from pointsman.steps.mixtures import EVERY, GaussianMixture
from pointsman.steps.policies.caching import WhenChanged
from pointsman.steps.policies.guidance import AdaptiveGuidance, Guided
from pointsman.steps.policies.linear_guidance import LinearGuidance
from pointsman.steps.policies.plain import Always, Plan, Skipping
from pointsman.steps.policies.stability import ADAMS_BASHFORTH, PUBLISHED, StabilityGuided
from pointsman.steps.quality import (
    energy_distance,
    faithfulness,
    frechet_distance,
    relative_distance,
    sliced_wasserstein,
    step_outcomes,
)
from pointsman.steps.samplers import DDIM, DDPM, DPMSolver, Euler
from pointsman.steps.sampling import (
    Computed,
    Evaluation,
    Moment,
    Sampled,
    Sampler,
    Settled,
    StepPolicy,
    sample,
)
from pointsman.steps.schedules import Schedule, cosine, linear, straight
from pointsman.steps.search import PlanSearch, plan_cost, random_plans

__all__ = [
    "ADAMS_BASHFORTH",
    "DDIM",
    "DDPM",
    "EVERY",
    "PUBLISHED",
    "AdaptiveGuidance",
    "Always",
    "Computed",
    "DPMSolver",
    "Denoiser",
    "Euler",
    "Evaluation",
    "GaussianMixture",
    "Guided",
    "LinearGuidance",
    "Moment",
    "Plan",
    "PlanSearch",
    "Sampled",
    "Sampler",
    "Schedule",
    "Settled",
    "Skipping",
    "StabilityGuided",
    "StepPolicy",
    "TokenTransformer",
    "Unmasking",
    "WhenChanged",
    "all_hidden",
    "clean_loss",
    "cosine",
    "energy_distance",
    "even_times",
    "expected_evaluations",
    "faithfulness",
    "fit_denoiser",
    "frechet_distance",
    "hide_by_order",
    "hide_by_rate",
    "linear",
    "noise_loss",
    "plan_cost",
    "random_plans",
    "relative_distance",
    "sample",
    "sliced_wasserstein",
    "step_outcomes",
    "straight",
]
