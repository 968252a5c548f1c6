"""The public names of the subpackages, and what importing the package costs."""

import importlib
import inspect
import subprocess
import sys

import pytest

NAMES = {
    "pointsman.claims": "CLAIMS Claim Figures Measurement Standing find measure must",
    "pointsman.compare": "Dataset Part Policy Request compare load load_policy",
    "pointsman.depth": "EarlyExit joint_loss",
    "pointsman.frontier": (
        "METHODS Certificate Frontier Knob Method Outcomes Pick Point aiq apgr certify cpt "
        "deferral_area deferral_curve fixed_sequence inputs_needed oracle p_value pgr "
        "random_mixing safest_first standard_error upper_bound"
    ),
    "pointsman.learn": (
        "LeastSquaresGate PolyStep equal_weights gumbel_straight_through imitation k_means "
        "leave_one_out log_prob_without_replacement polytope_step rectified_straight_through "
        "sparsemixer straight_through"
    ),
    "pointsman.moe": (
        "CompetingRouter CompetitionSchedule Context FeedForwardExperts LayerReport Leaks MoE "
        "Routing Slots SoftMerging SoftMoE Telemetry agreement check_guarantee leaks watch"
    ),
    "pointsman.pool": "Cascade",
    "pointsman.run": (
        "Answer Confidence Stage StageCosts Thresholds evaluating outcomes_of_stages run_staged "
        "stage_thresholds staged_outcomes subset_thresholds"
    ),
    "pointsman.select": (
        "Guarantee balanced categorical expert_choice first_confident group_limited guarantee_of "
        "guarantees gumbel hashed margin max_probability negative_entropy prototypes rectified "
        "relu sinkhorn sparse_transport threshold top_k top_p window with_capacity "
        "within_best_group"
    ),
    "pointsman.supernet": (
        "Nested PrefixBatchNorm2d PrefixConv2d PrefixLayerNorm PrefixLinear make_elastic"
    ),
}
LEVELS = "route cost errors select run depth moe supernet pool"


def public(name: str) -> list[str]:
    return sorted(importlib.import_module(name).__all__)


def imported_with(modules: str) -> set[str]:
    """What a fresh process has imported after these modules of the package."""
    code = f"import sys; import {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_those_that_were_promised(name: str) -> None:
    assert public(name) == sorted(NAMES[name].split())


@pytest.mark.parametrize("name", NAMES)
def test_public_classes_and_functions_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for each in public(name):
        found = getattr(module, each)
        if inspect.isclass(found) or inspect.isfunction(found):
            assert found.__doc__, each


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "scipy", "pandas", "matplotlib", "sklearn", "pyarrow", "rich"}
    assert imported_with("pointsman").isdisjoint(heavy | {"click", "jinja2"})


def test_importing_the_levels_pulls_in_no_charts_and_no_command_line() -> None:
    levels = ", ".join(f"pointsman.{level}" for level in LEVELS.split())
    found = imported_with(levels)
    assert "torch" in found
    assert found.isdisjoint({"matplotlib", "rich", "click", "jinja2"})
