"""A small world of questions that are answered by looking things up in several knowledge bases.

For learning to retrieve step by step, as R1-Router does (Peng et al. 2025, arXiv 2505.22095),
where no language model can be run. A question asks for several attributes, one after the other;
each attribute is kept in one knowledge base. In a planning turn the policy names the attribute to
ask for and the base to look in, or ends; in an answering turn it picks one of the fields that the
base gave back. What it writes is put in the tags of the paper, and judged by the same rules.

Simulated: the policy sees numbers and no text; a base that does not keep the attribute gives back
nothing of use; which field holds the answer hangs on the attribute; the final answer is put
together from those of the steps without loss. One of the plans is a broken format.

Legend: B questions, F features of a state, A actions of a turn, H attributes a question asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.reasoning.rewards import answer_reward, plan_reward
from pointsman.pool.reasoning.tags import NOWHERE, Plan, parse_answer, parse_plan
from pointsman.pool.recruit import letter_vectors

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["plan", "answer"]
# kind of turn, states (B, F) and whether each episode goes on (B,) to actions (B,)
Choose = Callable[[Kind, Array, npt.NDArray[np.bool_]], Ints]

ATTRIBUTES = ("author of the book", "colour of the bird", "population of the town")
BASES = ("Text Retriever", "Text Image Retriever", "Table Retriever")
FIELDS = 4
MOST = 3  # retrievals of an episode


class Turn(NamedTuple):
    """One turn of the teacher's way through each of B questions.

    Fields: `kind` of turn; `states` (B, F) as they are after the teacher's earlier turns; `teacher`
    (B,) what it did; `rewards` (B, A) what each action would earn there.
    """

    kind: Kind
    states: Array
    teacher: Ints
    rewards: Array


class Played(NamedTuple):
    """How a policy did on each of B questions.

    Fields: `right` (B,) 1 for a right final answer, else 0; `routed` (B,) share of the retrievals
    needed that went to the right base; `looked` (B,) retrievals, needed or not.
    """

    right: Array
    routed: Array
    looked: Array


@dataclass(frozen=True, eq=False)
class Questions:
    """`wanted` (B, H) attributes in order, and `shown` (B, H * attributes), a noisy view of it."""

    wanted: Ints
    shown: Array


class KnowledgeBases:
    """Attributes, each in a knowledge base of its own, and questions about several of them.

    Args:
        attributes: H that a question asks for, 1 to 3.
        noise: standard deviation of the view of the question.
        seed: of what is kept where.

    Attributes:
        home: (attributes,) the base that keeps each.
        field: (attributes,) the field in which it stands.
        plan_rewards: (plans, attributes + 1) what a plan earns where the teacher asks for an
            attribute, or, last column, ends.
        answer_rewards: (FIELDS, attributes).
    """

    def __init__(self, *, attributes: int = 2, noise: float = 0.2, seed: int = 0) -> None:
        if not 1 <= attributes <= MOST:
            raise InputError(f"a question asks for 1 to {MOST} attributes, got {attributes}")
        rng = np.random.default_rng(seed)
        self.hops = attributes
        self.noise = noise
        self.home: Ints = rng.permutation(len(BASES))
        self.field: Ints = rng.integers(FIELDS, size=len(ATTRIBUTES))
        # Every attribute with every base, then to end, then a broken format.
        self.plans = len(ATTRIBUTES) * len(BASES) + 2
        self.end, self.broken = self.plans - 2, self.plans - 1
        self.plan_rewards = self._plan_rewards()
        self.answer_rewards = np.array(
            [
                [self._judge_answer(field, a) for a in range(len(ATTRIBUTES))]
                for field in range(FIELDS)
            ]
        )

    @property
    def width(self) -> int:
        """F: the question, turns so far, and what was asked for last, where."""
        return self.hops * len(ATTRIBUTES) + MOST + 1 + self.plans

    @property
    def actions(self) -> dict[Kind, int]:
        """How many there are in each kind of turn."""
        return {"plan": self.plans, "answer": FIELDS}

    def questions(self, count: int, rng: np.random.Generator) -> Questions:
        """Draw questions; an attribute may be asked for twice."""
        wanted = rng.integers(len(ATTRIBUTES), size=(count, self.hops))
        shown = np.eye(len(ATTRIBUTES))[wanted].reshape(count, -1)
        return Questions(wanted, shown + self.noise * rng.normal(size=shown.shape))

    def teacher(self, wanted: Ints) -> Ints:
        """(B,) the right plan for an attribute; it looks where the attribute is kept."""
        return wanted * len(BASES) + self.home[wanted]

    def gold(self, questions: Questions) -> list[Turn]:
        """The teacher's turns: plan and answer for every attribute, and a plan to end."""
        turns, count = [], len(questions.wanted)
        last = np.full(count, self.end)
        for hop in range(self.hops):
            wanted = questions.wanted[:, hop]
            plan = self.teacher(wanted)
            states = self._states(questions, hop, last)
            turns.append(Turn("plan", states, plan, self.plan_rewards.T[wanted]))
            states = self._states(questions, hop, plan)
            turns.append(Turn("answer", states, self.field[wanted], self.answer_rewards.T[wanted]))
            last = plan
        ends = np.full(count, len(ATTRIBUTES))
        states = self._states(questions, self.hops, last)
        turns.append(Turn("plan", states, np.full(count, self.end), self.plan_rewards.T[ends]))
        return turns

    def play(self, questions: Questions, choose: Choose) -> Played:
        """Let a policy find its own way; it may also look things up that nobody needs."""
        count = len(questions.wanted)
        alive, found = np.ones(count, dtype=bool), np.zeros((count, self.hops), dtype=bool)
        routed, looked = np.zeros(count), np.zeros(count)
        last = np.full(count, self.end)
        for step in range(MOST):
            plan = choose("plan", self._states(questions, step, last), alive.copy())
            alive &= (plan != self.end) & (plan != self.broken)
            looked += alive
            field = choose("answer", self._states(questions, step, plan), alive.copy())
            if step < self.hops:
                wanted = questions.wanted[:, step]
                routed += alive & (plan % len(BASES) == self.home[wanted])
                right = (plan == self.teacher(wanted)) & (field == self.field[wanted])
                found[:, step] = alive & right
            last = plan
        return Played(found.all(axis=1).astype(float), routed / self.hops, looked)

    def write(self, plan: int) -> str:
        """A plan in the tags of the paper."""
        if plan == self.broken:
            return "<think>well</think><ret>Table Retriever</ret>"
        if plan == self.end:
            return f"<think>all is known</think><sub-question></sub-question><ret>{NOWHERE}</ret>"
        attribute, base = divmod(plan, len(BASES))
        return (
            f"<think>one more</think><sub-question>{ATTRIBUTES[attribute]}</sub-question>"
            f"<ret>{BASES[base]}</ret>"
        )

    def _plan_rewards(self) -> Array:
        """Every plan, written and read again, against every plan of the teacher."""
        home = self.teacher(np.arange(len(ATTRIBUTES)))
        due = [parse_plan(self.write(int(plan)), BASES) for plan in (*home, self.end)]
        found = [parse_plan(self.write(plan), BASES) for plan in range(self.plans)]
        return np.array(
            [[plan_reward(p, t, alike) for t in due if isinstance(t, Plan)] for p in found]
        )

    def _judge_answer(self, field: int, attribute: int) -> float:
        text = f"<think>here</think><answer>value {field}</answer>"
        return answer_reward(parse_answer(text), [f"value {self.field[attribute]}"])

    def _states(self, questions: Questions, step: int, last: Ints) -> Array:
        turn = np.tile(np.eye(MOST + 1)[step], (len(last), 1))
        return np.concatenate([questions.shown, turn, np.eye(self.plans)[last]], axis=1)


def alike(first: str, second: str) -> float:
    """Cosine of groups of letters of two texts; two empty ones are alike."""
    if not first or not second:
        return float(first == second)
    one, other = letter_vectors([first]), letter_vectors([second])
    return float((one @ other.T).toarray()[0, 0])
