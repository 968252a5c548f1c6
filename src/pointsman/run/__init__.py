"""Run only what was chosen: stages that inputs leave as soon as they are answered."""

from pointsman.modules import evaluating
from pointsman.run.outcomes import (
    StageCosts,
    outcomes_of_stages,
    stage_sureness,
    staged_outcomes,
)
from pointsman.run.staged import (
    Answer,
    Confidence,
    Stage,
    State,
    StoppingRule,
    Thresholds,
    run_staged,
    stage_thresholds,
    subset_thresholds,
)

__all__ = [
    "Answer",
    "Confidence",
    "Stage",
    "StageCosts",
    "State",
    "StoppingRule",
    "Thresholds",
    "evaluating",
    "outcomes_of_stages",
    "run_staged",
    "stage_sureness",
    "stage_thresholds",
    "staged_outcomes",
    "subset_thresholds",
]
