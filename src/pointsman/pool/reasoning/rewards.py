"""Rewards by rule: for whole episodes of Router-R1, and for single turns of R1-Router.

Zhang et al., "Router-R1" (2025, arXiv 2506.09033), for an episode:

    -1                        the format is broken, and nothing else counts
    0                         the answer is wrong: a cheap refusal earns nothing
    (1 - a) + a * cheapness   the answer is right

with cheapness = 1 - clip((s - low) / (high - low), 0, 1), s the square root of what the calls cost,
low and high the 5th and 95th percentile of the last 1,000 of them.

Peng et al., R1-Router (2025, arXiv 2505.22095), for a turn: half the similarity of the sub-question
to the teacher's plus half for the teacher's knowledge base; for an answer, how many of the
reference's words it has.

Legend: N episodes.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.programs.answers import same_answer
from pointsman.pool.reasoning.tags import Breach, Plan

Array = npt.NDArray[np.float64]
SHORT = 5  # words up to which a reference must be given in full


class Cheapness:
    """1 for what is cheap among recent episodes, 0 for what is dear.

    Args:
        window: how many episodes are remembered.
        low: quantile at and below which the cheapness is 1.
        high: quantile at and above which it is 0.
    """

    def __init__(self, *, window: int = 1000, low: float = 0.05, high: float = 0.95) -> None:
        if window < 1 or not 0 <= low < high <= 1:
            raise InputError(
                "a window holds at least one episode, and 0 <= low < high <= 1, got "
                f"{window}, {low} and {high}"
            )
        self.low = low
        self.high = high
        self._roots: deque[float] = deque(maxlen=window)

    def __call__(self, cost: npt.ArrayLike) -> Array:
        """(N,) cheapness of new episodes, which are remembered first; 0.5 while all cost the same.

        Args:
            cost: (N,) not negative.

        Raises:
            InputError: a cost that is negative or not finite.
        """
        spent = np.atleast_1d(np.asarray(cost, dtype=np.float64))
        if not (np.isfinite(spent) & (spent >= 0)).all():
            raise InputError("costs must be finite and not negative")
        roots = np.sqrt(spent)
        self._roots.extend(roots.tolist())
        if not self._roots:
            return roots
        low, high = np.quantile(np.array(self._roots), [self.low, self.high])
        if high <= low:
            return np.full(len(roots), 0.5)
        found: Array = 1 - np.clip((roots - low) / (high - low), 0, 1)
        return found


def episode_reward(
    breach: npt.ArrayLike, right: npt.ArrayLike, cheapness: npt.ArrayLike, *, weight: float
) -> Array:
    """(N,) rewards of episodes: format before answer, answer before cost.

    Args:
        breach: (N,) bool, whether the format is broken.
        right: (N,) in [0, 1], whether the answer is right.
        cheapness: (N,) in [0, 1], see `Cheapness`.
        weight: a, of the cost, in [0, 1].

    Raises:
        InputError: a weight that is no share.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"the weight of the cost is a share in [0, 1], got {weight}")
    earned = np.asarray(right, dtype=np.float64) * (
        1 - weight + weight * np.asarray(cheapness, dtype=np.float64)
    )
    found: Array = np.where(np.asarray(breach, dtype=bool), -1.0, earned)
    return found


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer says the same as one of the references, see `same_answer`."""
    return same_answer(answer) in {same_answer(reference) for reference in references}


def plan_reward(
    plan: Plan | Breach, teacher: Plan, similarity: Callable[[str, str], float]
) -> float:
    """Of a planning turn: 0 for a broken format, else both halves, see above.

    Args:
        plan: what the policy wrote, parsed.
        teacher: what the teacher wrote at this place.
        similarity: of two sub-questions, in [-1, 1]; the paper takes the cosine of embeddings.
    """
    if isinstance(plan, Breach):
        return 0.0
    alike = similarity(plan.question, teacher.question)
    return 0.5 * alike + 0.5 * (plan.base == teacher.base)


def answer_reward(answer: str | Breach, references: Sequence[str]) -> float:
    """Of an answering turn: the recall of the reference's words, the best over references.

    Where a reference is short (5 words or fewer), or there are several, only a recall of 1 counts.

    Args:
        answer: what the policy wrote, parsed; a broken format earns 0.
        references: one or more right answers.

    Raises:
        InputError: no reference, or an empty one.
    """
    if not references or not all(map(_words, references)):
        raise InputError(f"an answer needs references that are not empty, got {list(references)}")
    if isinstance(answer, Breach):
        return 0.0
    recall = max(word_recall(answer, reference) for reference in references)
    strict = len(references) > 1 or len(_words(references[0])) <= SHORT
    return float(recall == 1) if strict else recall


def word_recall(answer: str, reference: str) -> float:
    """Share of the reference's words that the answer has, counted as often as they occur."""
    wanted, given = Counter(_words(reference)), Counter(_words(answer))
    return sum((wanted & given).values()) / sum(wanted.values())


def _words(text: str) -> list[str]:
    return [word for word in (same_answer(part) for part in text.split()) if word]
