"""Symbolic-MoE: three models recruited for each query by its skills, without training.

Chen et al., "Symbolic Mixture-of-Experts: Adaptive Skill-based Routing for Heterogeneous Reasoning"
(2025, arXiv 2503.05641).

Every model gets a profile: +1 or -1 for each skill of each validation question that it answered
rightly or wrongly. For a new question, models are drawn with replacement in proportion to their
score on its skills times their strength over all, those that are drawn rarely are replaced, and the
answers are put together. The parts are in `pool.recruit`: `steady_skills`, `Recruiter`, `batches`,
`vote` and `best_aggregator`.

What was settled:
- Models are simulated. Eight of them have an ability of their own on each of 12 skills; a question
  asks for one to three skills, and a model is right with the logistic function of its mean ability
  on them. A wrong answer is one of three, the first of which misleads most. A question's keywords
  come from five noisy samples, in each of which a true skill may be missing or spelt in another way
  and a foreign one may appear; keywords that occur once only are dropped, as in the paper.
- The answers are put together by vote, not by an aggregator that writes a new one: that would be a
  further language model. Choosing the aggregator is tested in `quick` alone.
- All policies ask three times a question, and the vote breaks ties by the first answer. "Task
  level" asks the three models that were right most often on the validation questions; "best model"
  asks the best one three times. Both know the same 250 validation questions as the recruiter.
- Beside the criterion: recruiting the top three by the same weights, without drawing; and random
  models. The number of times a model must be loaded is that of a loop over questions that keeps the
  last model loaded, against one pass over batches.
- Abilities are normal with mean 0.1 and standard deviation 1.6, set before anything was run; the
  recruiter has the paper's constants, and nothing was tuned.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

SKILLS = (
    "algebra",
    "anatomy",
    "chemistry",
    "ethics",
    "genetics",
    "geometry",
    "grammar",
    "history",
    "optics",
    "probability",
    "statute law",
    "thermodynamics",
)
MODELS, PLACES = 8, 3
VALIDATION, TEST = 250, 1500
SPREAD, OFFSET = 1.6, 0.1
MISLED = (0.5, 0.25, 0.25)  # how wrong answers are shared out
RULES = ("recruited by skill", "top 3 by skill", "task level", "best model x 3", "random 3")


def quick() -> None:
    """Profiles are right less wrong; who is bad at all skills is not drawn; batches hold all."""
    import numpy as np

    from pointsman.pool.recruit import (
        Recruiter,
        aggregation_tests,
        batches,
        best_aggregator,
        steady_skills,
        vote,
    )

    must(steady_skills([["A", "b"], ["a"], ["c"]]) == ("a",), "one-off keywords are dropped")
    world = _World(0)
    skills, right = world.named(world.validation), world.right[: len(world.validation)]
    recruiter = Recruiter(rare=0.0).fit(skills, right)
    at = recruiter.skills_.index("algebra")
    own = [row for row, named in enumerate(skills) if "algebra" in named]
    must(
        bool(np.array_equal(recruiter.profile_[:, at], (2 * right[own] - 1).sum(axis=0))),
        "a profile is right less wrong",
    )
    weights = recruiter.weights(skills)
    local = np.stack(
        [
            recruiter.profile_[:, [recruiter.skills_.index(s) for s in named]].sum(axis=1)
            for named in skills
            if named
        ]
    )
    bad = (local <= 0) & (local.max(axis=1, keepdims=True) > 0)
    must(not weights[[bool(named) for named in skills]][bad].any(), "only who is good is drawn")
    drawn = recruiter.recruit(skills)
    held = sum(len(batch.rows) for batch in batches(drawn))
    must(held == drawn.size, "every place is in one batch, also where a model is drawn twice")
    steady = Recruiter(rare=0.1).fit(skills, right).recruit(skills)
    must(set(np.unique(steady)) <= set(np.unique(drawn)), "replacements are frequent models")
    must(vote(["b", "a", "a"]) == "a", "most votes win")
    tests = aggregation_tests(["right"] * 9, [["wrong", "bad"]] * 9)
    found = {"first": [test[0] for test in tests], "good": ["right"] * 9}
    must(best_aggregator(found, ["right"] * 9) == "good", "who finds the right answer aggregates")


class _World:
    """Questions, keywords, and what each of three calls of each model would answer."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self.rng = rng = np.random.default_rng(seed)
        ability = rng.normal(0, SPREAD, size=(MODELS, len(SKILLS))) + OFFSET
        count = VALIDATION + TEST
        self.asked = [
            rng.choice(len(SKILLS), size=rng.integers(1, 4), replace=False) for _ in range(count)
        ]
        logit = np.stack([ability[:, skills].mean(axis=1) for skills in self.asked])
        self.chance: Any = 1 / (1 + np.exp(-logit))
        # (questions, models, calls): 0 is the right answer
        wrong = rng.choice(3, size=(count, MODELS, PLACES), p=MISLED) + 1
        hit = rng.random((count, MODELS, PLACES)) < self.chance[:, :, None]
        self.answers = np.where(hit, 0, wrong)
        self.right = (self.answers[:, :, 0] == 0).astype(float)
        self.keywords = [self._keywords(skills) for skills in self.asked]
        self.validation = range(VALIDATION)
        self.test = range(VALIDATION, count)

    def named(self, rows: range) -> list[tuple[str, ...]]:
        """Keywords of these questions."""
        return [self.keywords[row] for row in rows]

    def _keywords(self, skills: "np.ndarray[Any, Any]") -> tuple[str, ...]:
        from pointsman.pool.recruit import steady_skills

        samples = []
        variant = self.rng.random() < 0.2  # "geometry problem": known by its letters only
        for _ in range(5):
            words = [SKILLS[at] for at in skills if self.rng.random() < 0.8]
            if self.rng.random() < 0.3:
                words.append(SKILLS[self.rng.integers(len(SKILLS))])
            samples.append([f"{word} task" if variant else word for word in words])
        return steady_skills(samples)


def full(seed: int) -> Figures:
    """Accuracy of three calls and a vote under five ways to choose them; loads of models."""
    import numpy as np

    from pointsman.pool.recruit import Recruiter, batches

    world = _World(seed)
    right = world.right[:VALIDATION]
    recruiter = Recruiter(PLACES, seed=seed).fit(world.named(world.validation), right)
    skills = world.named(world.test)
    by_rate = np.argsort(-right.mean(axis=0), kind="stable")
    recruited = recruiter.recruit(skills)
    chosen = {
        "recruited by skill": recruited,
        "top 3 by skill": np.argsort(-recruiter.weights(skills), axis=1, kind="stable")[:, :PLACES],
        "task level": np.tile(by_rate[:PLACES], (TEST, 1)),
        "best model x 3": np.tile(by_rate[:1], (TEST, PLACES)),
        "random 3": world.rng.integers(MODELS, size=(TEST, PLACES)),
    }
    found = {f"{rule}: accuracy": _accuracy(world, chosen[rule]) for rule in RULES}
    best = world.chance[VALIDATION:].max(axis=1)
    one_by_one = recruited.ravel()
    return {
        **found,
        "best model of each question, once: accuracy": float(best.mean()),
        "one question after another: loads": float(1 + (np.diff(one_by_one) != 0).sum()),
        "batches: loads": float(len(list(batches(recruited)))),
    }


def _accuracy(world: _World, chosen: "np.ndarray[Any, Any]") -> float:
    """Share of test questions whose vote is right; a model drawn twice is asked twice."""
    from pointsman.pool.recruit import vote

    right = 0
    for row, models in zip(world.test, chosen.tolist(), strict=True):
        calls: dict[int, int] = {}
        answers = []
        for model in models:
            call = calls[model] = calls.get(model, -1) + 1
            answers.append(int(world.answers[row, model, call]))
        right += vote(answers) == 0
    return right / TEST


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    at = {rule: mean(measurements, f"{rule}: accuracy") for rule in RULES}
    return at["recruited by skill"] >= max(at["task level"], at["best model x 3"]) + 0.04


CLAIM = Claim(
    slug="symbolic-moe",
    paper="Symbolic Mixture-of-Experts: Adaptive Skill-based Routing for Heterogeneous Reasoning",
    year=2025,
    arxiv="2503.05641",
    level="pool",
    claim="Recruiting three models for each question by profiles of skills, without training, "
    "beats the three best models of the task and three calls of the best one.",
    baseline="The three models that are best on the validation questions, and the best of them "
    "asked three times; both with the same vote and as many calls. Random models beside them.",
    criterion="On eight simulated models and twelve skills, with 250 validation and 1,500 test "
    "questions: accuracy of recruiting by skill is at least 4 points above that of the task-level "
    "three and that of the best model asked three times, in the mean over seeds.",
    quick=quick,
    full=full,
    decide=decide,
    composition="skills from several keyword samples · profiles of right less wrong · strength · "
    "draws with replacement · rare models replaced · batches by model · vote",
    entry="pointsman.pool.recruit.Recruiter",
    key={
        "accuracy, by skill": "recruited by skill: accuracy",
        "task level": "task level: accuracy",
        "best model x 3": "best model x 3: accuracy",
    },
    note="Taking the top three by the same weights, without drawing, does no worse: the profiles "
    "do the work, not the draws.",
)
