"""What a program of texts says: by drawing, rejecting, weighing, or enumerating.

Dohan et al., "Language Model Cascades" (2022, arXiv 2207.10342), with Wang et al.,
"Self-Consistency Improves Chain of Thought Reasoning in Language Models" (2022, arXiv 2203.11171):

    p(A | Q) = sum over T of p(A | Q, T) p(T | Q)     a vote over draws estimates it
    p(T, A | Q, V = 1) ~ p(V = 1 | Q, T, A) p(T, A | Q)     draws, kept or weighed by the verifier

A forward draw cannot look ahead to what is observed later, hence the weights. Answers are grouped
by `same_answer`, because texts that say the same would split the vote.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pointsman.errors import InputError, UnreachableError
from pointsman.pool.programs.answers import same_answer
from pointsman.pool.programs.program import Distribution, Program, Trace, every, once

Normal = Callable[[str], str]


def ancestral(
    program: Program, count: int, *, seed: int = 0, given: Mapping[str, str] | None = None
) -> list[Trace]:
    """Independent runs, variables drawn in the order of the program.

    Args:
        program: see `pool.programs.program`.
        count: runs.
        seed: of the draws.
        given: values to condition on, by name. Runs are then weighed by how likely these are
            ("likelihood weighting"), and `marginal` takes the weights into account.
    """
    rng = np.random.default_rng(seed)

    def choose(name: str, distribution: Distribution) -> str:
        return distribution.draw(rng)

    return [once(program, choose, given or {}) for _ in range(count)]


def rejection(
    program: Program,
    count: int,
    *,
    seed: int = 0,
    given: Mapping[str, str] | None = None,
    attempts: int = 100_000,
) -> tuple[list[Trace], float]:
    """Runs drawn until `count` are kept, each kept with the probability of what is conditioned on.

    Args:
        program: see `pool.programs.program`.
        count: runs to keep.
        seed: of the draws.
        given: values to condition on, by name.
        attempts: most runs to draw.

    Returns:
        The runs kept, all of equal weight, and the cost of all runs, kept or not.

    Raises:
        UnreachableError: fewer were kept in so many attempts.
    """
    rng = np.random.default_rng(seed)

    def choose(name: str, distribution: Distribution) -> str:
        return distribution.draw(rng)

    kept: list[Trace] = []
    spent, drawn = 0.0, 0
    while len(kept) < count and drawn < attempts:
        trace = once(program, choose, given or {})
        spent, drawn = spent + trace.cost, drawn + 1
        if rng.random() < math.exp(trace.log_weight):
            kept.append(replace(trace, log_weight=0.0))
    if len(kept) == count:
        return kept, spent
    raise UnreachableError(
        f"{len(kept)} of {count} runs were kept in {attempts} attempts: weigh runs instead "
        "(`ancestral` with `given`), or condition on something likelier"
    )


def enumerated(program: Program, *, given: Mapping[str, str] | None = None) -> list[Trace]:
    """Every possible run with the logarithm of its probability as weight: the exact answer.

    Raises:
        InputError: a variable whose values are not known, such as a call of a model.
    """
    return list(every(program, given or {}))


def probabilities(traces: Sequence[Trace]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) weights of N runs, summing to one.

    Raises:
        InputError: no run.
        UnreachableError: what is conditioned on is impossible in all of them.
    """
    if not traces:
        raise InputError("weights need at least one run, got none")
    logs = np.array([trace.log_weight for trace in traces])
    if not np.isfinite(logs.max()):
        raise UnreachableError(
            f"what is conditioned on is impossible in all {len(traces)} runs: draw more, or look "
            "for a misspelt value"
        )
    weights = np.exp(logs - logs.max())
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = weights / weights.sum()
    return shares


def marginal(traces: Sequence[Trace], normal: Normal = same_answer) -> dict[str, float]:
    """How likely each answer is, whatever led to it: the (weighted) vote of self-consistency.

    Args:
        traces: runs, drawn, kept or enumerated.
        normal: texts that it makes equal are one answer.

    Returns:
        Answer to probability, likeliest first; ties in alphabetical order.
    """
    found: dict[str, float] = {}
    for trace, weight in zip(traces, probabilities(traces), strict=True):
        answer = normal(trace.result)
        found[answer] = found.get(answer, 0.0) + float(weight)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def consensus(traces: Sequence[Trace], normal: Normal = same_answer) -> tuple[str, float]:
    """The likeliest answer, and its share: the agreement on which a cascade may defer."""
    return next(iter(marginal(traces, normal).items()))


def effective_size(traces: Sequence[Trace]) -> float:
    """How many runs of equal weight would say as much: 1 over the sum of squared weights."""
    return float(1 / np.square(probabilities(traces)).sum())
