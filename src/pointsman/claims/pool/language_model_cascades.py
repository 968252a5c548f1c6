"""Language model cascades: chains of model calls as probabilistic programs over texts.

Dohan et al., "Language Model Cascades" (2022, arXiv 2207.10342).

A question, a thought, an answer and a verifier's verdict are random variables whose values are
texts, and a chain of calls is a program that draws them in turn. Known techniques are then
inference in one such program: self-consistency is a Monte Carlo estimate of the sum over thoughts,
a verifier is a condition (rejection, or weights), STaR is expectation maximisation. The parts are
`pool.programs`: tables or calls as conditionals, drawing, rejecting, weighing, enumerating, the
vote over answers, selection and inference, tools, and `SelfTaughtReasoner`.

What was settled:
- The paper gives a formalism and no number to reproduce, so what is measured is that the inference
  does what the formalism says, on tables that can be enumerated in full: 20 questions a seed with
  6 thoughts, 5 answers and a verifier that is right about an answer in most cases. Tables are drawn
  from Dirichlet distributions; a draw stands for a call of a model.
- The rate is the slope of log(total variation between the vote and the exact marginal) over
  log(draws), from 100 to 6,400 draws.
- As a use of it: the share of questions answered rightly from ten draws each by the first draw, by
  the plain vote and by the vote weighed with the verifier; all ten draws are the same ones.
- A forward draw that ignores the verdict is the baseline of the conditioned answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

    from pointsman.pool.programs.program import Program

QUESTIONS, THOUGHTS, ANSWERS = 20, 6, 5
COUNTS = (100, 400, 1600, 6400)
MANY, FEW, TRIALS = 100_000, 10, 20
GIVEN = {"verdict": "right"}


def quick() -> None:
    """The vote sums over thoughts, a verifier's weights are Bayes' rule, and STaR never falls."""
    import math

    from pointsman.pool.programs import (
        SelfTaughtReasoner,
        Table,
        ancestral,
        enumerated,
        marginal,
        rejection,
    )

    world = _World(0)
    program = world.program(0)
    exact, hand = marginal(enumerated(program)), world.by_hand(0, judged=False)
    must(_distance(exact, hand) < 1e-12, "enumeration is the sum over thoughts")
    exact, hand = marginal(enumerated(program, given=GIVEN)), world.by_hand(0, judged=True)
    must(_distance(exact, hand) < 1e-12, "with a verdict it is Bayes' rule")
    must(_distance(marginal(ancestral(program, 4000, given=GIVEN)), hand) < 0.05, "so with weights")
    kept, spent = rejection(program, 500, given=GIVEN)
    must(_distance(marginal(kept), hand) < 0.12, "and with rejection")
    must(spent >= sum(trace.cost for trace in kept), "where what is thrown away is paid, too")
    star = SelfTaughtReasoner(
        lambda question: "any", lambda question, thought: world.answers(question, thought)
    ).fit({"any": dict(Table(world.thoughts[0]).support())}, ["0", "1", "2"], ["0", "0", "0"])
    rises = zip(star.log_likelihood_, star.log_likelihood_[1:], strict=False)
    must(all(b >= a - 1e-12 for a, b in rises), "gold answers never get less likely")
    must(math.isfinite(star.log_likelihood_[-1]), "and stay possible")


class _World:
    """Tables of thoughts, answers and verdicts for questions "0", "1", …; "0" is always right."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        from pointsman.pool.programs import Conditional

        rng = np.random.default_rng(seed)
        thoughts = [str(t) for t in range(THOUGHTS)]
        answers = [str(a) for a in range(ANSWERS)]
        self.thoughts = [_table(rng, thoughts, 0.7) for _ in range(QUESTIONS)]
        # A right answer is somewhat likelier than any wrong one after most thoughts, not all.
        lean = np.array([2.0] + [0.8] * (ANSWERS - 1))
        self.answers = Conditional(
            {
                (str(q), t): dict(zip(answers, rng.dirichlet(lean).tolist(), strict=True))
                for q in range(QUESTIONS)
                for t in thoughts
            }
        )
        self.says_right = {
            (str(q), a): float(rng.uniform(0.5, 0.9) if a == "0" else rng.uniform(0.1, 0.5))
            for q in range(QUESTIONS)
            for a in answers
        }

    def program(self, question: int) -> "Program":
        """Question to thought to answer to verdict; each call costs one."""
        from pointsman.pool.programs import Table, chain_of_thought

        thoughts = Table(self.thoughts[question], cost=1.0)
        verdicts = {
            a: Table({"right": p, "wrong": 1 - p}, cost=1.0)
            for (q, a), p in self.says_right.items()
            if q == str(question)
        }
        tables = {t: self.answers(str(question), t) for t in self.thoughts[question]}
        return chain_of_thought(
            str(question),
            lambda asked: thoughts,
            lambda asked, thought: tables[thought],
            lambda asked, thought, answer: verdicts[answer],
        )

    def by_hand(self, question: int, *, judged: bool) -> dict[str, float]:
        """The marginal of the answer, by two loops."""
        found: dict[str, float] = {}
        for thought, p in self.thoughts[question].items():
            for answer, q in self.answers.tables[str(question), thought].items():
                weight = self.says_right[str(question), answer] if judged else 1.0
                found[answer] = found.get(answer, 0.0) + p * q * weight
        total = sum(found.values())
        return {answer: p / total for answer, p in found.items()}


def _table(rng: "np.random.Generator", values: Sequence[str], spread: float) -> dict[str, float]:
    import numpy as np

    shares = rng.dirichlet(np.full(len(values), spread))
    return dict(zip(values, (shares / shares.sum()).tolist(), strict=True))


def _distance(first: Figures, second: Figures) -> float:
    """Total variation: half the sum of absolute differences."""
    keys = set(first) | set(second)
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in keys) / 2


def _draws(seed: int, question: int, trial: int = 999) -> int:
    """A seed of its own for every question and trial, so that errors are independent."""
    return (1000 * seed + question) * 1000 + trial


def full(seed: int) -> Figures:
    """Rate of the vote, error of the conditioned answer, likelihood under STaR, and accuracies."""
    world = _World(seed)
    return {**_rates(world, seed), **_few_draws(world, seed), **_taught(world, seed)}


def _rates(world: _World, seed: int) -> dict[str, float]:
    import numpy as np

    from pointsman.pool.programs import ancestral, marginal

    errors = np.zeros(len(COUNTS))
    for question in range(QUESTIONS):
        exact = world.by_hand(question, judged=False)
        traces = ancestral(world.program(question), max(COUNTS), seed=_draws(seed, question))
        for at, count in enumerate(COUNTS):
            groups = [traces[i : i + count] for i in range(0, max(COUNTS), count)]
            errors[at] += np.mean([_distance(marginal(group), exact) for group in groups])
    slope = np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
    many, exact = (
        ancestral(world.program(0), MANY, seed=seed, given=GIVEN),
        world.by_hand(0, judged=True),
    )
    return {
        "vote: slope of error over draws": float(slope),
        "verifier as weights: total variation": _distance(marginal(many), exact),
        "verifier ignored: total variation": _distance(world.by_hand(0, judged=False), exact),
    }


def _few_draws(world: _World, seed: int) -> dict[str, float]:
    """Share of right answers from ten draws a question."""
    from dataclasses import replace

    from pointsman.pool.programs import ancestral, consensus

    right = {"first draw": 0.0, "vote of 10": 0.0, "vote of 10 with verifier": 0.0}
    for question in range(QUESTIONS):
        for trial in range(TRIALS):
            weighed = ancestral(
                world.program(question), FEW, seed=_draws(seed, question, trial), given=GIVEN
            )
            plain = [replace(trace, log_weight=0.0) for trace in weighed]
            right["first draw"] += weighed[0].result == "0"
            right["vote of 10"] += consensus(plain)[0] == "0"
            right["vote of 10 with verifier"] += consensus(weighed)[0] == "0"
    return {f"{name}: right": count / (QUESTIONS * TRIALS) for name, count in right.items()}


def _taught(world: _World, seed: int) -> dict[str, float]:
    from pointsman.pool.programs import SelfTaughtReasoner

    questions = [str(q) for q in range(QUESTIONS)]
    prior = {str(k): world.thoughts[k] for k in range(4)}

    def kind(question: str) -> str:
        return str(int(question) % 4)

    star = SelfTaughtReasoner(kind, world.answers, rounds=30).fit(
        prior, questions, ["0"] * QUESTIONS
    )
    steps = [b - a for a, b in zip(star.log_likelihood_, star.log_likelihood_[1:], strict=False)]
    return {
        "before STaR: log-likelihood of gold": star.log_likelihood_[0],
        "after STaR: log-likelihood of gold": star.log_likelihood_[-1],
        "worst round of STaR: change of log-likelihood": min(steps),
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    never_falls = all(
        figures["worst round of STaR: change of log-likelihood"] >= -1e-9
        for figures in measurements
    )
    slope = mean(measurements, "vote: slope of error over draws")
    distance = max(figures["verifier as weights: total variation"] for figures in measurements)
    first, vote, judged = (
        mean(measurements, f"{name}: right")
        for name in ("first draw", "vote of 10", "vote of 10 with verifier")
    )
    rate = abs(slope + 0.5) <= 0.05
    return never_falls and rate and distance < 0.02 and first < vote < judged


CLAIM = Claim(
    slug="language-model-cascades",
    paper="Language Model Cascades",
    year=2022,
    arxiv="2207.10342",
    level="pool",
    claim="Chains of model calls are probabilistic programs over texts, so that self-consistency, "
    "verifiers and STaR are inference in one program and behave as probability theory says.",
    baseline="A single forward draw, the plain vote, and a forward draw that ignores the verdict; "
    "enumeration as the exact answer.",
    criterion="On enumerable tables: the error of the vote falls with the number of draws at a "
    "power of -0.5 within 0.05 (mean over seeds); the answer weighed by the verifier is within a "
    "total variation of 0.02 of the exact one at 100,000 draws for every seed; full-batch STaR "
    "never lowers the likelihood of the gold answers; and with ten draws the vote is right more "
    "often than the first draw, and the vote weighed by the verifier more often still.",
    quick=quick,
    full=full,
    decide=decide,
    composition="texts as random variables · ancestral draws · verifier as weights or rejection · "
    "vote over normalised answers · STaR as expectation maximisation",
    entry="pointsman.pool.programs.chain_of_thought",
    key={
        "slope of the vote's error": "vote: slope of error over draws",
        "right, first draw": "first draw: right",
        "vote": "vote of 10: right",
        "with verifier": "vote of 10 with verifier: right",
    },
)
