"""STaR: a model learns from those of its own thoughts that led to right answers.

Zelikman et al., "STaR: Bootstrapping Reasoning With Reasoning" (2022, arXiv 2203.14465), read as
expectation maximisation as in Dohan et al. (2022, arXiv 2207.10342). With a table p(T | C) of
thoughts for each kind C of question, and answers p(A | Q, T) that stay:

    E: w(T) = p(T | C(Q)) p(A = gold | Q, T) / sum over T' of the same
    M: p(T | C) = mean of w(T) over the questions of kind C

so the likelihood of the gold answers never falls. The paper samples instead: it draws thoughts,
keeps those whose answer is right, draws thoughts for the others with the gold answer given
("rationalisation"), and fine-tunes on what it kept.

Where we depart from the paper: the model is a table and not a network, so that fine-tuning is
counting; and each round starts from the latest table, where the paper fine-tunes the first model
anew. A kind of question of which no thought was kept stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.programs.program import Table

Thoughts = Mapping[str, Mapping[str, float]]


class SelfTaughtReasoner:
    """Thoughts by kind of question, learned from questions with gold answers.

    Args:
        kind: question to its kind.
        answer: question and thought to the table of answers.
        rounds: of learning.
        samples: thoughts drawn a question and round. None: all of them, weighed exactly.
        rationalise: with `samples`: where none led to the gold answer, draw as many thoughts given
            the gold answer.
        seed: of the draws.

    Attributes:
        thoughts_: kind to thought to probability.
        log_likelihood_: mean log-probability of the gold answers before each round and after all.
    """

    def __init__(
        self,
        kind: Callable[[str], str],
        answer: Callable[[str, str], Table],
        *,
        rounds: int = 5,
        samples: int | None = None,
        rationalise: bool = True,
        seed: int = 0,
    ) -> None:
        self.kind = kind
        self.answer = answer
        self.rounds = rounds
        self.samples = samples
        self.rationalise = rationalise
        self.seed = seed

    def fit(self, thoughts: Thoughts, questions: Sequence[str], gold: Sequence[str]) -> Self:
        """Learn, starting from given thoughts.

        Args:
            thoughts: kind to thought to probability.
            questions: N texts.
            gold: their N right answers, spelt as in the tables of answers.

        Raises:
            InputError: other numbers of questions and answers, or a kind without thoughts.
        """
        if len(questions) != len(gold) or not questions:
            raise InputError(
                f"each question needs one gold answer, got {len(questions)} and {len(gold)}"
            )
        unknown = {self.kind(question) for question in questions} - set(thoughts)
        if unknown:
            raise InputError(f"there are no thoughts for questions of kind {min(unknown)!r}")
        self.thoughts_ = {kind: dict(Table(table).support()) for kind, table in thoughts.items()}
        self.log_likelihood_ = [self._likelihood(questions, gold)]
        rng = np.random.default_rng(self.seed)
        for _ in range(self.rounds):
            kept: dict[str, dict[str, float]] = {}
            for question, right in zip(questions, gold, strict=True):
                counts = kept.setdefault(self.kind(question), {})
                for thought, weight in self._kept(question, right, rng).items():
                    counts[thought] = counts.get(thought, 0.0) + weight
            for kind, counts in kept.items():
                total = sum(counts.values())
                if total > 0:
                    self.thoughts_[kind] = {t: w / total for t, w in counts.items() if w > 0}
            self.log_likelihood_.append(self._likelihood(questions, gold))
        return self

    def __call__(self, question: str) -> Table:
        """The learned thoughts about a question, as the first variable of a program."""
        return Table(self.thoughts_[self.kind(question)])

    def _kept(self, question: str, gold: str, rng: np.random.Generator) -> Mapping[str, float]:
        posterior = self._posterior(question, gold)
        if self.samples is None:
            return posterior
        prior, counts = Table(self.thoughts_[self.kind(question)]), dict[str, float]()
        for _ in range(self.samples):
            thought = prior.draw(rng)
            if self.answer(question, thought).draw(rng) == gold:
                counts[thought] = counts.get(thought, 0.0) + 1
        if counts or not posterior or not self.rationalise:
            return counts
        rationales = Table(posterior)
        for _ in range(self.samples):
            thought = rationales.draw(rng)
            counts[thought] = counts.get(thought, 0.0) + 1
        return counts

    def _posterior(self, question: str, gold: str) -> dict[str, float]:
        """p(T | Q, A = gold); empty where the gold answer is impossible."""
        joint = {
            thought: p * self.answer(question, thought).probabilities.get(gold, 0.0)
            for thought, p in self.thoughts_[self.kind(question)].items()
        }
        total = sum(joint.values())
        return {thought: p / total for thought, p in joint.items() if p > 0} if total > 0 else {}

    def _likelihood(self, questions: Sequence[str], gold: Sequence[str]) -> float:
        found = [
            sum(
                p * self.answer(question, thought).probabilities.get(right, 0.0)
                for thought, p in self.thoughts_[self.kind(question)].items()
            )
            for question, right in zip(questions, gold, strict=True)
        ]
        with np.errstate(divide="ignore"):  # an impossible answer: minus infinity, honestly
            return float(np.log(found).mean())
