"""A pool that answers questions of several parts, simulated from an evaluation log.

For learning to route in several rounds, as Router-R1 does (Zhang et al. 2025, arXiv 2506.09033),
where no model can be called. Real, because it is read from the log:

- the parts of a question, which are queries of the log;
- whether each model answers each part rightly, and what the call costs.

Simulated, and nothing of this is in any log:

- several queries are joined to one question, whose answer is right if all of its parts are;
- a thought splits the question without fault and names the next part; the policy sees the vector of
  that query, not a text;
- a wrong reply is noticed with a fixed chance, and the part then stays open, so that another model
  may be asked; a reply that seems right closes its part;
- a model asked twice about a part says the same again;
- the final answer is put together from the replies without loss, and costs nothing.

Legend: N queries of the log, B episodes, P parts of a question, M models, D width of a vector.
"""

from html import escape

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError
from pointsman.pool.log import Log

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
NONE = -1  # no such part


class SimulatedPool:
    """Questions made of the queries of a log, and the replies of its models.

    Args:
        log: every quality and cost must be known, see `Log.complete`.
        vectors: (N, D) what the policy sees of each query.
        parts: P, most parts of a question.
        turns: most calls of models in an episode; the paper has four.
        notice: chance that a wrong reply is noticed.

    Raises:
        InputError: a missing cell, vectors that do not fit, or keywords out of range.
    """

    def __init__(
        self,
        log: Log,
        vectors: npt.ArrayLike,
        *,
        parts: int = 2,
        turns: int = 4,
        notice: float = 0.5,
    ) -> None:
        self.vectors: Array = np.asarray(vectors, dtype=np.float64)
        if self.vectors.ndim != 2 or len(self.vectors) != len(log):
            raise InputError(f"vectors must be ({len(log)}, D), got {self.vectors.shape}")
        if not log.complete().all():
            raise InputError(
                "a pool is simulated from queries that every model answered: give "
                "log.take(log.complete())"
            )
        if parts < 1 or turns < 1 or not 0 <= notice <= 1:
            raise InputError(
                "parts and turns are at least 1 and notice is a chance, got "
                f"{parts}, {turns} and {notice}"
            )
        self.log = log
        self.parts = parts
        self.turns = turns
        self.notice = notice

    @property
    def actions(self) -> int:
        """M + 1: a call of each model, and to answer."""
        return len(self.log.models) + 1

    @property
    def width(self) -> int:
        """How many numbers the policy sees."""
        return int(self.vectors.shape[1]) + self.parts + 1 + len(self.log.models) + 1

    def questions(self, count: int, rng: np.random.Generator) -> Ints:
        """(count, P) rows of the log, drawn at random; from 1 to P parts, equally often."""
        rows = rng.integers(len(self.log), size=(count, self.parts))
        size = rng.integers(1, self.parts + 1, size=count)
        return np.where(np.arange(self.parts) < size[:, None], rows, NONE).astype(np.int64)

    def start(self, questions: Ints, rng: np.random.Generator) -> "Episodes":
        """Episodes about these questions, none of which has asked anybody yet."""
        return Episodes(self, questions, rng)


class Episodes:
    """B episodes that advance side by side, one decision each at a time.

    Args:
        pool: what answers.
        questions: (B, P) rows of the pool's log, NONE beyond the last part.
        rng: decides which wrong replies are noticed.

    Attributes:
        alive: (B,) bool, whether the episode goes on.
        breach: (B,) bool, whether it ended without an answer, which breaks the format.
        right: (B,) in [0, 1], product of the qualities of all parts once it has answered.
        cost: (B,) of all calls so far, in the unit of the log.
        calls: (B, M) how often each model was asked.
    """

    def __init__(self, pool: SimulatedPool, questions: Ints, rng: np.random.Generator) -> None:
        count, models = len(questions), len(pool.log.models)
        self.pool = pool
        self.questions = questions
        self.sizes = (questions != NONE).sum(axis=1)
        self.alive = np.ones(count, dtype=bool)
        self.breach = np.zeros(count, dtype=bool)
        self.right = np.zeros(count)
        self.cost = np.zeros(count)
        self.calls = np.zeros((count, models), dtype=np.int64)
        self._rng = rng
        self._part = np.zeros(count, dtype=np.int64)
        self._replied = np.zeros(questions.shape)
        self._asked = np.zeros((count, models), dtype=bool)
        self._said: list[tuple[Ints, Ints]] = []  # the actions of each turn, and the part meant

    def observe(self) -> Array:
        """(B, width): the open part's vector, parts left, who was wrong about it, turns used."""
        row = self._open()
        shown = np.where((row == NONE)[:, None], 0.0, self.pool.vectors[row])
        left = np.eye(self.pool.parts + 1)[self.sizes - self._part]
        used = self.calls.sum(axis=1, keepdims=True) / self.pool.turns
        return np.concatenate([shown, left, self._asked, used], axis=1)

    def take(self, actions: Ints) -> None:
        """Carry out one decision of each episode; those that have ended are left alone.

        Args:
            actions: (B,) a model's column, or M to answer.
        """
        models = len(self.pool.log.models)
        answers = self.alive & (actions == models)
        calling = self.alive & ~answers
        over = calling & (self.calls.sum(axis=1) >= self.pool.turns)
        self.breach |= over
        self._said.append((np.where(answers | (calling & ~over), actions, NONE), self._part.copy()))
        self._call(np.flatnonzero(calling & ~over), actions)
        every = np.where(self.questions == NONE, 1.0, self._replied).prod(axis=1)
        self.right = np.where(answers, every, self.right)
        self.alive &= ~(answers | over)

    def _call(self, who: Ints, actions: Ints) -> None:
        model, log = actions[who], self.pool.log
        part = np.minimum(self._part[who], self.sizes[who] - 1)  # nothing open: the last again
        row = self.questions[who, part]
        self.cost[who] += log.cost[row, model]
        self.calls[who, model] += 1
        was_open = self._part[who] < self.sizes[who]
        quality = log.quality[row, model]
        fresh = was_open & ~self._asked[who, model]
        self._replied[who[was_open], part[was_open]] = quality[was_open]
        noticed = (self._rng.random(len(who)) < self.pool.notice * (1 - quality)) | ~fresh
        self._asked[who, model] |= was_open
        closed = who[was_open & ~noticed]
        self._part[closed] += 1
        self._asked[closed] = False

    def _open(self) -> Ints:
        """(B,) the query that is the next open part; NONE where all are closed."""
        at = np.minimum(self._part, self.pool.parts - 1)
        row = self.questions[np.arange(len(at)), at]
        return np.where(self._part < self.sizes, row, NONE).astype(np.int64)

    def text(self, episode: int) -> str:
        """One episode in the tags of Router-R1, as `parse_episode` reads them.

        A reply to part i of full quality reads "gold i"; see `gold`.
        """
        log, models, written = self.pool.log, self.pool.log.models, []
        replies = [""] * int(self.sizes[episode])
        for actions, parts in self._said:
            action, part = int(actions[episode]), int(parts[episode])
            if action == NONE:
                break
            meant = f"part {part + 1} of {len(replies)}" if part < len(replies) else "all is known"
            written.append(f"<think>{meant}</think>")
            if action == len(models):
                written.append(f"<answer>{'; '.join(reply or '-' for reply in replies)}</answer>")
                break
            row = self.questions[episode, min(part, len(replies) - 1)]
            reply = "no change"
            if part < len(replies):
                right = log.quality[row, action] == 1
                replies[part] = reply = f"{'gold' if right else 'other'} {part + 1}"
            written.append(f"<search>{models[action]}: {escape(log.queries[row])}</search>")
            written.append(f"<information>{reply}</information>")
        return "\n".join(written)

    def gold(self, episode: int) -> str:
        """The right answer to one question, as `text` would write it."""
        return "; ".join(f"gold {part + 1}" for part in range(int(self.sizes[episode])))
