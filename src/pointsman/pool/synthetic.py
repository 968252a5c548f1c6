"""Worlds with a known truth: logs of made-up queries in which it is known what can be found.

A world draws logs of queries in made-up words and knows, for every query, the chance that each
model answers rightly and the mean of what the call costs. So a router can be held against the best
policy there is, and not only against other routers. What a query reveals depends on the kind:

- "clusters": every query has a topic, which its words give away; models are good at some topics;
- "linear": every word makes a query a little easier or harder for each model;
- "length": cheap models fail on long queries;
- "tasks": the task, a group column, decides; the words say nothing;
- "unlearnable": nothing that can be seen decides, although which model is right does vary; the best
  policy at every price is a single model;
- "signals": weak topics, and after the answer a free confidence and a dearer verifier which know,
  with noise, whether the answer is right.

Answers are right or wrong. Those of different models to one query depend on each other (a Gaussian
copula with a common difficulty), which changes no model's chances.

Legend: N queries, M models, T traits of a query, V words.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtr

from pointsman.errors import InputError
from pointsman.pool.log import Log, Texts
from pointsman.pool.routers.router import Prediction

Array = npt.NDArray[np.float64]
Kind = Literal["clusters", "linear", "length", "tasks", "unlearnable", "signals"]

TOPICS, TOPIC_WORDS, COMMON_WORDS = 8, 30, 120
TRAITS = 3  # directions in which words of a "linear" world pull
SHORTEST, LONGEST = 8, 60  # words of a query, in a "length" world from 3 to 300
# Spread of topic skills in logits; the weaker ones leave room for what the answer tells.
SKILL = {"clusters": 1.3, "tasks": 1.3, "signals": 0.6}
DEPENDENCE = 0.7  # correlation, within a query, of the models' latent luck
OUTPUT_PRICE = 4.0  # an output token costs this many input tokens
MEAN_OUTPUT, OUTPUT_SPREAD = 120.0, 0.5  # output tokens, log-normal
# Separation of the signal given right and given wrong answers, in standard deviations, and its
# price as input tokens of the dearest model.
SIGNALS = {"confidence": (1.5, 0.0), "verifier": (3.0, 20.0)}


@dataclass(frozen=True, eq=False)
class World:
    """A pool of models, and queries for which the truth about them is known; see `world`.

    Args:
        kind: what a query reveals.
        models: M names.
        token_price: (M,) US$ per input token, rising.
        bias: (M,) log-odds of a right answer to a query without traits.
        skill: (T, M) what each trait adds to them.
        words: V made-up words.
        traits: (V, T) what each word says.
        seed: of the world.
    """

    kind: Kind
    models: tuple[str, ...]
    token_price: Array
    bias: Array
    skill: Array
    words: tuple[str, ...]
    traits: Array
    seed: int

    def log(self, n: int, seed: int = 0, *, missing: float = 0.0, repeated: float = 0.0) -> Log:
        """Draw queries and what each model scored and cost on them.

        Args:
            n: queries N.
            seed: of the draw; equal seeds give equal logs.
            missing: share of the cells that are left empty (quality, cost, latency and signals).
            repeated: share of the queries that are copies of earlier ones, answered anew.

        Raises:
            InputError: n below 1, or shares outside [0, 1).
        """
        if n < 1 or not 0 <= missing < 1 or not 0 <= repeated < 1:
            raise InputError(
                "a log needs n of at least 1 and shares missing and repeated in [0, 1), got "
                f"n = {n}, missing = {missing}, repeated = {repeated}"
            )
        rng = np.random.default_rng((self.seed, seed))
        queries, topic = self._queries(n, rng)
        copies = np.flatnonzero(rng.random(n) < repeated)
        copies = copies[copies > 0]
        originals = (rng.random(len(copies)) * copies).astype(np.int64)
        for copy, original in zip(copies, originals, strict=True):
            queries[copy], topic[copy] = queries[original], topic[original]
        groups = {"task": _column(f"task-{t}" for t in topic)} if self.kind == "tasks" else {}
        return self._answered(queries, groups, missing, rng)

    def truth(self, log: Log) -> Prediction:
        """The expected quality and cost of every model on every query, (N, M) each.

        Expected given the query (and its task), before any model is called.

        Args:
            log: of this world.
        """
        quality = self._chances(log.queries, log.groups)
        return Prediction(quality, self._tokens(log.queries)[:, None] * self.token_price)

    def posterior(self, log: Log, signal: str) -> Array:
        """(N, M) the chance that each answer is right, given the query and a signal of the answer.

        Raises:
            InputError: the log has no such signal, or the world gives none.
        """
        if self.kind != "signals" or signal not in log.signals or signal not in SIGNALS:
            raise InputError(
                f"a world of kind {self.kind!r} knows nothing about a signal {signal!r}: only the "
                f"kind 'signals' has {', '.join(SIGNALS)}"
            )
        shown = _logit(log.signals[signal])
        prior = _logit(self._chances(log.queries, log.groups))
        # Normal around plus and minus half of the separation: the ratio of densities is its product
        chance: Array = expit(prior + SIGNALS[signal][0] * shown)
        return chance

    def prices(self, log: Log) -> tuple[float, ...]:
        """Prices, in quality per US$, from free to so dear that only the cheapest model pays.

        Spread around the price at which the whole range of the models' qualities is worth the whole
        range of their costs.
        """
        truth = self.truth(log)
        quality, cost = truth.quality.mean(axis=0), truth.cost.mean(axis=0)
        scale = max(float(np.ptp(quality)), 0.01) / float(np.ptp(cost))
        return tuple(scale * factor for factor in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0))

    def best(self, log: Log, price: float = 0.0) -> npt.NDArray[np.int64]:
        """(N,) the model of the best policy that decides before any call.

        Args:
            log: of this world.
            price: what a US$ is worth, in quality.
        """
        best: npt.NDArray[np.int64] = self._gains(log, price).argmax(axis=1)
        return best

    def best_single(self, log: Log, price: float = 0.0) -> int:
        """The model to send everything to, if all must go to one."""
        return int(self._gains(log, price).mean(axis=0).argmax())

    def utility(self, log: Log, chosen: npt.ArrayLike, price: float = 0.0) -> float:
        """Mean true quality of a choice, less `price` times its mean true cost.

        Args:
            log: of this world.
            chosen: (N,) model columns, or (N, M) shares that sum to 1 in every row.
            price: what a US$ is worth, in quality.

        Raises:
            InputError: the choice does not fit the log.
        """
        return float((self._gains(log, price) * self._shares(log, chosen)).sum(axis=1).mean())

    def regret(self, log: Log, chosen: npt.ArrayLike, price: float = 0.0) -> float:
        """Utility that a choice loses against `best`: at least 0, in quality per query."""
        best = float(self._gains(log, price).max(axis=1).mean())
        return best - self.utility(log, chosen, price)

    def found(self, log: Log, chosen: npt.ArrayLike, price: float = 0.0) -> float:
        """Share of the gap between the best single model and the best policy that a choice closes.

        1 is the best policy, 0 the best single model; below 0 is worse than that. NaN where there
        is no gap.
        """
        gains = self._gains(log, price)
        single = float(gains.mean(axis=0).max())
        gap = float(gains.max(axis=1).mean()) - single
        return (self.utility(log, chosen, price) - single) / gap if gap > 1e-9 else float("nan")

    def _gains(self, log: Log, price: float) -> Array:
        truth = self.truth(log)
        gains: Array = truth.quality - price * truth.cost
        return gains

    def _shares(self, log: Log, chosen: npt.ArrayLike) -> Array:
        given = np.asarray(chosen)
        n, m = len(log), len(self.models)
        if given.shape == (n,) and given.dtype.kind in "iu" and ((given >= 0) & (given < m)).all():
            return np.asarray(np.eye(m)[given])
        if given.shape == (n, m) and np.allclose(given.sum(axis=1), 1.0) and (given >= 0).all():
            return given.astype(np.float64)
        raise InputError(
            f"a choice is ({n},) columns of {m} models or ({n}, {m}) shares that sum to 1, got "
            f"{given.dtype} {given.shape}"
        )

    def _queries(self, n: int, rng: np.random.Generator) -> tuple[Texts, npt.NDArray[np.int64]]:
        """Texts (N,) and their topics; only some kinds let the words tell the topic."""
        shortest, longest = (3, 300) if self.kind == "length" else (SHORTEST, LONGEST)
        # Log-uniform: as many queries between 10 and 20 words as between 20 and 40.
        length = np.exp(rng.uniform(np.log(shortest), np.log(longest + 1), n)).astype(np.int64)
        topic = rng.integers(TOPICS, size=n)
        row = np.repeat(np.arange(n), length)
        word = rng.integers(COMMON_WORDS, size=len(row))
        if self.kind in ("clusters", "signals"):
            topical = rng.random(len(row)) < 0.5
            first = COMMON_WORDS + topic[row] * TOPIC_WORDS
            word = np.where(topical, first + rng.integers(TOPIC_WORDS, size=len(row)), word)
        elif self.kind == "linear":
            word = rng.integers(len(self.words), size=len(row))
        cuts = np.concatenate([[0], np.cumsum(length)])
        text = np.array(self.words, dtype=object)[word]
        return _column(" ".join(text[a:b]) for a, b in pairwise(cuts)), topic

    def _chances(self, queries: Texts, groups: Mapping[str, Texts]) -> Array:
        """(N, M) chance of a right answer."""
        return np.asarray(expit(self.bias + self._traits(queries, groups) @ self.skill))

    def _traits(self, queries: Texts, groups: Mapping[str, Texts]) -> Array:
        """(N, T) what a query reveals."""
        n, t = len(queries), self.skill.shape[0]
        if self.kind == "unlearnable":
            return np.zeros((n, t))
        if self.kind == "tasks":
            if "task" not in groups:
                raise InputError("queries of a world of kind 'tasks' need their group 'task'")
            task = [int(name.removeprefix("task-")) for name in groups["task"]]
            return np.asarray(np.eye(t)[task])
        split = [query.split() for query in queries]
        count = np.array([len(words) for words in split])
        if self.kind == "length":
            middle, half = np.log(30.0), np.log(10.0)  # of the logarithm of 3 to 300 words
            return np.asarray((np.log(np.maximum(count, 1)) - middle) / half)[:, None]
        at = {word: place for place, word in enumerate(self.words)}
        said = np.stack([self.traits[[at[w] for w in ws if w in at]].sum(axis=0) for ws in split])
        if self.kind == "linear":
            return np.asarray(said / np.sqrt(np.maximum(count, 1))[:, None])
        # No topical word at all is rare: such a query has no topic.
        return np.where(said.max(axis=1, keepdims=True) > 0, np.eye(t)[said.argmax(axis=1)], 0.0)

    def _tokens(self, queries: Texts) -> Array:
        """(N,) expected tokens of a call, in input tokens."""
        if self.kind == "unlearnable":  # else long queries are better sent to cheap models
            return np.full(len(queries), 200.0 + OUTPUT_PRICE * MEAN_OUTPUT)
        length = np.array([len(query) for query in queries])
        return length / 4 + OUTPUT_PRICE * MEAN_OUTPUT

    def _answered(
        self, queries: Texts, groups: dict[str, Texts], missing: float, rng: np.random.Generator
    ) -> Log:
        n, m = len(queries), len(self.models)
        luck = rng.normal(size=(n, 1)) * np.sqrt(DEPENDENCE)
        luck = luck + rng.normal(size=(n, m)) * np.sqrt(1 - DEPENDENCE)
        right = ndtr(luck) < self._chances(queries, groups)
        surprise = np.exp(rng.normal(-(OUTPUT_SPREAD**2) / 2, OUTPUT_SPREAD, (n, m)))
        output = MEAN_OUTPUT * surprise
        tokens = self._tokens(queries)[:, None] + OUTPUT_PRICE * (output - MEAN_OUTPUT)
        signals, signal_cost = {}, {}
        if self.kind == "signals":
            for name, (apart, price) in SIGNALS.items():
                shown = (right - 0.5) * apart + rng.normal(size=(n, m))
                signals[name] = expit(shown)
                if price:
                    signal_cost[name] = np.full((n, m), price * self.token_price[-1])
        cells = [right.astype(np.float64), tokens * self.token_price, 0.2 + output * 0.01]
        gone = rng.random((n, m)) < missing
        if missing:
            gone[:, gone.all(axis=0)] = False  # a model without a single score is no model
        quality, cost, latency = (np.where(gone, np.nan, cell) for cell in cells)
        return Log(
            queries,
            self.models,
            quality,
            cost,
            latency=latency,
            signals={name: np.where(gone, np.nan, cell) for name, cell in signals.items()},
            signal_cost=signal_cost,
            groups=groups,
            name=f"synthetic-{self.kind}",
            note=f"made-up queries of kind {self.kind!r}, {m} models",
        )


def world(kind: Kind, *, models: int = 10, seed: int = 0) -> World:
    """A world of a kind; equal arguments give equal worlds.

    Prices per token rise by equal factors, 200 in all, and so does, on average, the quality.

    Args:
        kind: see the module.
        models: M, at least 2.
        seed: draws the words and who is good at what.

    Raises:
        InputError: another kind, or fewer than 2 models.
    """
    if kind not in get_args(Kind):
        raise InputError(f"a world is one of {', '.join(get_args(Kind))}, got {kind!r}")
    if models < 2:
        raise InputError(f"a world needs at least 2 models, got {models}")
    rng = np.random.default_rng((seed, get_args(Kind).index(kind)))
    words = _words(COMMON_WORDS + TOPICS * TOPIC_WORDS, rng)
    bias = np.linspace(-0.8, 1.4, models)
    if kind == "linear":
        words = words[:COMMON_WORDS]
        traits = rng.normal(size=(len(words), TRAITS))
        skill = rng.normal(size=(TRAITS, models)) * 0.9
    elif kind == "length":
        traits = np.zeros((len(words), 1))
        # The dearest model does not mind; cheap ones begin as well and fall.
        skill = np.linspace(-3.0, 0.0, models)[None, :] + rng.normal(size=(1, models)) * 0.2
    elif kind == "unlearnable":
        traits, skill = np.zeros((len(words), 1)), np.zeros((1, models))
    else:
        topic = np.repeat(np.arange(TOPICS), TOPIC_WORDS)
        traits = np.concatenate([np.zeros((COMMON_WORDS, TOPICS)), np.eye(TOPICS)[topic]])
        skill = rng.normal(size=(TOPICS, models)) * SKILL[kind]
    return World(
        kind=kind,
        models=tuple(f"model-{at:0{len(str(models - 1))}d}" for at in range(models)),
        token_price=np.geomspace(0.1e-6, 20e-6, models),
        bias=bias,
        skill=skill,
        words=words,
        traits=traits,
        seed=seed,
    )


def _words(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Different made-up words of two or three syllables."""
    consonants, vowels = list("bdfgklmnprstvz"), list("aeiou")
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = rng.integers(2, 4)
        heads, tails = rng.choice(consonants, syllables), rng.choice(vowels, syllables)
        found["".join(a + b for a, b in zip(heads, tails, strict=True))] = None
    return tuple(found)


def _column(values: Iterable[str]) -> Texts:
    listed = list(values)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column


def _logit(chance: Array) -> Array:
    logit: Array = np.log(chance) - np.log1p(-chance)
    return logit
