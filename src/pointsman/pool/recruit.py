"""Recruit models of a pool for each query by the skills that it asks for, and let them vote.

Chen et al., "Symbolic Mixture-of-Experts: Adaptive Skill-based Routing for Heterogeneous Reasoning"
(2025, arXiv 2503.05641). Nothing is trained: with y in [0, 1] the quality of model m on a
validation query, and its skills named by a language model,

    profile[m, s] = sum over queries with skill s of 2 y - 1            (+1 right, -1 wrong)
    local[m]      = sum over the skills of a new query of profile[m, s]
    strength[m]   ~ (sum over s of profile[m, s], shifted to be positive) ** power
    k models are drawn WITH replacement with probabilities ~ local[m] strength[m], local[m] > 0

A model drawn twice is asked twice. Models that hold few places in all are replaced, so that each
model that has to be loaded is worth it, and queries are grouped by model.

Where we depart from the paper:
- qualities may lie between 0 and 1, and missing ones (NaN) count neither way;
- skills are compared as vectors of letter groups unless an encoder is given: nothing is downloaded;
- rare models are replaced by draws from the query's own weights over the frequent ones. Whether the
  paper draws from these or from overall frequencies could not be settled.

Legend: N queries, M models, S skills, K places of a query.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]
Vectors = Callable[[Sequence[str]], Any]
Answer = TypeVar("Answer", bound=Hashable)

LETTERS = 2**12  # columns that groups of letters are hashed to


def steady_skills(
    samples: Sequence[Sequence[str]], *, least: int = 2, longest: int = 20
) -> tuple[str, ...]:
    """Skills that a language model named in several of its samples; one-off words are noise.

    Args:
        samples: keywords of one query, a list for each sample.
        least: in how many samples a keyword must occur.
        longest: characters that a keyword may have.

    Returns:
        In lower case, the most frequent first, ties in order of appearance.
    """
    counts = Counter(
        word
        for sample in samples
        for word in dict.fromkeys(" ".join(keyword.casefold().split()) for keyword in sample)
        if 0 < len(word) <= longest
    )
    return tuple(word for word, count in counts.most_common() if count >= least)


def letter_vectors(skills: Sequence[str]) -> Any:
    """(n, LETTERS) sparse rows of unit length: groups of two to four letters of each skill."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=LETTERS, alternate_sign=False
    )
    return hashing.transform(skills)


class Recruiter:
    """Chooses K models for each query by what they are good at.

    Args:
        places: K, models asked a query, the same one counted as often as it is drawn.
        power: of the strength over all skills; the paper's temperature of 0.5 is a power of 2.
        rare: models that hold a smaller share of all places are replaced; 0: none.
        vectors: skills to (n, D) rows, dense or sparse, whose cosine says how near two skills are.
        seed: of the draws.

    Attributes:
        skills_: the S known skills, in alphabetical order.
        profile_: (M, S) right less wrong.
        strength_: (M,) shares, summing to one.
    """

    def __init__(
        self,
        places: int = 3,
        *,
        power: float = 2.0,
        rare: float = 0.05,
        vectors: Vectors = letter_vectors,
        seed: int = 0,
    ) -> None:
        self.places = places
        self.power = power
        self.rare = rare
        self.vectors = vectors
        self.seed = seed

    def fit(self, skills: Sequence[Sequence[str]], quality: npt.ArrayLike) -> Self:
        """Profile every model on validation queries.

        Args:
            skills: of each of N queries, see `steady_skills`.
            quality: (N, M) in [0, 1], NaN where a model was not asked.

        Raises:
            InputError: shapes that do not fit, qualities out of range, or no skill at all.
        """
        scores = np.asarray(quality, dtype=np.float64)
        if self.places < 1 or not 0 <= self.rare < 1 or self.power < 0:
            raise InputError(
                "places is at least 1, rare a share below 1 and power not negative, got "
                f"{self.places}, {self.rare} and {self.power}"
            )
        if scores.ndim != 2 or len(scores) != len(skills):
            raise InputError(f"quality must be ({len(skills)}, models), got {scores.shape}")
        if (scores < 0).any() or (scores > 1).any():
            raise InputError("qualities must lie in [0, 1]: rescale them")
        self.skills_ = tuple(sorted({skill for named in skills for skill in named}))
        if not self.skills_:
            raise InputError(f"none of the {len(skills)} queries names a skill")
        self._rows = self.vectors(self.skills_)
        marks = np.where(np.isnan(scores), 0.0, 2 * scores - 1)
        self.profile_: Array = marks.T @ self._counts(skills)
        total = self.profile_.sum(axis=1)
        if total.min() < 0:
            total = total - total.min() + 1
        powered = total**self.power
        alike = np.full(len(total), 1 / len(total))
        self.strength_: Array = powered / powered.sum() if powered.sum() > 0 else alike
        return self

    def weights(self, skills: Sequence[Sequence[str]]) -> Array:
        """(N, M) probabilities of being drawn; unknown skills count as the nearest known one.

        A query without any skill is judged by all of them alike.
        """
        counts = self._counts(skills)
        counts[counts.sum(axis=1) == 0] = 1.0
        local = counts @ self.profile_.T
        hopeless = local.max(axis=1) <= 0
        local[hopeless] += 1 - local[hopeless].min(axis=1, keepdims=True)
        found = np.maximum(local, 0.0) * self.strength_
        nobody = found.sum(axis=1) == 0  # good at this query, and of no strength over all
        found[nobody] = np.maximum(local[nobody], 0.0)
        shares: Array = found / found.sum(axis=1, keepdims=True)
        return shares

    def recruit(self, skills: Sequence[Sequence[str]]) -> Columns:
        """(N, K) models of each query, drawn with replacement, rare ones replaced."""
        rng = np.random.default_rng(self.seed)
        weights = self.weights(skills)
        drawn = _draw(weights, self.places, rng)
        held = np.bincount(drawn.ravel(), minlength=weights.shape[1]) / max(drawn.size, 1)
        frequent = held >= self.rare
        if not frequent.any():
            return drawn
        kept = np.where(frequent, weights, 0.0)
        empty = kept.sum(axis=1) == 0  # all of its candidates are rare: take the usual ones
        kept[empty] = np.where(frequent, held, 0.0)
        again = _draw(kept / kept.sum(axis=1, keepdims=True), self.places, rng)
        replaced: Columns = np.where(frequent[drawn], drawn, again)
        return replaced

    def _counts(self, skills: Sequence[Sequence[str]]) -> Array:
        """(N, S) how many of a query's skills are, or lie nearest to, each known one."""
        known = {skill: at for at, skill in enumerate(self.skills_)}
        new = sorted({skill for named in skills for skill in named} - set(known))
        if new:
            near = self.vectors(new) @ self._rows.T
            near = np.asarray(near.todense() if hasattr(near, "todense") else near)
            known |= {skill: int(row.argmax()) for skill, row in zip(new, near, strict=True)}
        counts = np.zeros((len(skills), len(self.skills_)))
        for row, named in enumerate(skills):
            for skill in named:
                counts[row, known[skill]] += 1
        return counts


class Batch(NamedTuple):
    """What one model has to answer: `rows` (n,) of the queries and `places` (n,) of each."""

    model: int
    rows: Columns
    places: Columns


def batches(recruited: Columns) -> Iterator[Batch]:
    """Every model once, with all that it has to answer, so that it is loaded once only.

    Args:
        recruited: (N, K) models; a query that drew a model twice is in its batch twice.
    """
    for model in np.unique(recruited):
        rows, places = np.nonzero(recruited == model)
        yield Batch(int(model), rows, places)


def vote(answers: Sequence[Answer]) -> Answer:
    """The answer that most gave; among equals the one given first.

    Raises:
        InputError: no answer.
    """
    if not answers:
        raise InputError("a vote needs at least one answer, got none")
    return Counter(answers).most_common(1)[0][0]


def aggregation_tests(
    right: Sequence[str], wrong: Sequence[Sequence[str]], *, seed: int = 0
) -> list[tuple[str, ...]]:
    """For each query one right answer among wrong ones, shuffled: whoever finds it can aggregate.

    Args:
        right: an answer of known good quality to each query.
        wrong: bad answers to each, two in the paper.
        seed: of the shuffling.
    """
    rng = np.random.default_rng(seed)
    tests = []
    for good, bad in zip(right, wrong, strict=True):
        traces = [good, *bad]
        tests.append(tuple(traces[at] for at in rng.permutation(len(traces))))
    return tests


def best_aggregator(found: Mapping[str, Sequence[str]], right: Sequence[str]) -> str:
    """The model that gave the right answer in most aggregation tests; among equals the first.

    Args:
        found: model to its final answer in each test.
        right: the right one of each.

    Raises:
        InputError: no model, or another number of answers than tests.
    """
    if not found or any(len(answers) != len(right) for answers in found.values()):
        raise InputError(f"every model needs one answer for each of {len(right)} tests")
    return max(
        found,
        key=lambda model: sum(a == b for a, b in zip(found[model], right, strict=True)),
    )


def _draw(weights: Array, places: int, rng: np.random.Generator) -> Columns:
    """(N, K) columns, drawn with replacement from each row of probabilities."""
    edges = weights.cumsum(axis=1)
    points = rng.random((len(weights), places)) * edges[:, -1:]
    found: Columns = (points[:, :, None] >= edges[:, None, :]).sum(axis=2)
    return found
