"""Stages in order: an input leaves with the first answer that is sure enough, and batches shrink.

Cascades of models and early exits of one network are the same run. A `Stage` may move the state on
(an exit network computes the next segment; a cascade leaves the input as it is) and it answers.
What happens at a stage is one number, its threshold:

    t        answer the inputs whose confidence is at least t, pass the others on
    +inf     skipped: the state moves on, the answer is never computed nor paid for
    -inf     everybody who comes this far is answered here

so a choice of stages with a threshold each is one vector (S,), see `subset_thresholds`. The last
stage always answers: its own threshold is never read. How sure an answer is says a function of its
logits or, where more than these matter (which stage it is, what earlier ones said), a
`StoppingRule`.

`run_staged` runs lazily and serves; `staged_outcomes` beside it weighs many settings at once over
logits that were computed once. The tests hold the two against each other.

Legend: T inputs of a batch, n of them still there, S stages, C classes.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import InputError, RouteError
from pointsman.route import Route
from pointsman.select import max_probability

# A tensor, or tuples, lists and dicts of tensors (None allowed), one row per input everywhere.
State = Any
Confidence = Callable[[Tensor], Tensor]
Thresholds = float | Sequence[float]


@runtime_checkable
class StoppingRule(Protocol):
    """How sure an answer is, where that takes more than its own logits.

    A rule holds nothing about a batch: what it has to remember of the inputs that go on (what the
    stage before said, how often it was said in a row) is handed to it and taken back at every
    stage that answers. Stages that are skipped are not shown to it.
    """

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """How sure each answer is, and what to remember.

        Args:
            logits: (n, C) of the inputs that are still there.
            stage: that answered, from 0.
            memory: what the rule gave at the last stage that answered, its rows those of these
                inputs; None at the first.

        Returns:
            (n,), higher is surer, to be held against the stage's threshold; and a state of n rows,
            or None.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """One stage: `advance` takes the state to this stage, `answer` reads logits off it.

    Attributes:
        answer: state of n inputs -> logits (n, C), or (n, ..., C) where an input has several
            places and the confidence looks at them all.
        advance: state of n inputs -> their next state; None leaves the state as it is, so that a
            skipped stage does nothing at all and is not on the route.
    """

    answer: Callable[[State], Tensor]
    advance: Callable[[State], State] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What came out, and how.

    Attributes:
        output: (T, ..., C), for each input that of the stage that answered it.
        route: the stages each input visited, in order, with weight 0, and the one that answered it
            with weight 1. `route.cost(...)` therefore pays for the stages that were not sure, too.
    """

    output: Tensor
    route: Route

    @property
    def stage(self) -> Tensor:
        """(T,) int64: the stage that answered each input."""
        return self.route.answered_by()


def stage_thresholds(thresholds: Thresholds, stages: int) -> np.ndarray[Any, Any]:
    """The thresholds of every stage, (S,) float64; that of the last is -inf: it always answers.

    Args:
        thresholds: one number for all stages; or S - 1 numbers, one per stage before the last; or
            S numbers, of which the last is not read.
        stages: S, at least 1.

    Raises:
        InputError: no stage, another count of thresholds, or NaN among them.
    """
    if stages < 1:
        raise InputError("at least one stage is needed, got none")
    given = np.asarray(thresholds, dtype=float)
    if given.ndim == 0:
        given = np.full(stages, float(given))
    if given.ndim != 1 or len(given) not in (stages - 1, stages):
        raise InputError(
            f"{stages} stages need {stages - 1} thresholds, one for each stage before the last "
            f"(or one number for all), got {given.shape} of them"
        )
    if np.isnan(given).any():
        raise InputError(f"a threshold is a number, got NaN at stage {np.isnan(given).argmax()}")
    return np.append(given[: stages - 1], -math.inf)


def subset_thresholds(
    stages: Sequence[int], thresholds: Thresholds, num_stages: int
) -> tuple[float, ...]:
    """The thresholds (S,) that use only some of the stages: the others are skipped.

    Args:
        stages: which to use, ascending; the last of them always answers.
        thresholds: as in `stage_thresholds`, for the stages used.
        num_stages: S, how many there are.

    Raises:
        InputError: stages out of range, not ascending, or none.
    """
    chosen = list(stages)
    ascending = all(a < b for a, b in pairwise(chosen))
    if not chosen or not ascending or chosen[0] < 0 or chosen[-1] >= num_stages:
        raise InputError(
            f"stages are chosen in ascending order from 0 to {num_stages - 1}, got {chosen}"
        )
    row = np.full(num_stages, math.inf)
    row[chosen] = stage_thresholds(thresholds, len(chosen))
    return tuple(float(t) for t in row)


def run_staged(
    stages: Sequence[Stage],
    x: State,
    thresholds: Thresholds,
    confidence: Confidence | StoppingRule = max_probability,
    skip: Collection[int] = (),
) -> Answer:
    """Run stages in order on the inputs that no stage has answered yet.

    An input is answered by the first stage whose confidence reaches the threshold there, else by
    the last. Answered inputs leave before the next stage runs; when none is left, nothing runs. An
    empty batch is shown to the first stage that answers, only to learn the number of classes.

    Gradients flow through the outputs (not through the choice); call under `torch.no_grad()` and
    `evaluating(module)` to serve.

    Args:
        stages: S of them, at least one.
        x: the first state, with T inputs: a tensor, or tuples, lists and dicts of tensors that
            share their first dimension.
        thresholds: one number, or one per stage, see `stage_thresholds`; +inf skips a stage.
        confidence: logits (n, C) -> (n,), higher is surer; or a stopping rule.
        skip: stages that only advance, as if their threshold were +inf. The last cannot be one.

    Raises:
        InputError: thresholds or skips that do not fit, a state that is not made of rows, or
            stages that answer in different shapes or dtypes.
        RouteError: a confidence is NaN, or not one number per input.
    """
    limits = stage_thresholds(thresholds, len(stages))
    _skip(limits, skip)
    state, num_inputs, device = x, *_rows(x)
    here = torch.arange(num_inputs, device=device)  # which inputs the rows of the state are
    visits: list[tuple[Tensor, int, Tensor | None]] = []  # inputs, stage, which were answered
    outputs: list[Tensor] = []
    memory: State | None = None
    # asked once: a look at a protocol takes about as long as a confidence of a few inputs
    rule = confidence if isinstance(confidence, StoppingRule) else _Memoryless(confidence)
    for at, stage in enumerate(stages):
        if stage.advance is not None:
            state = stage.advance(state)
        if limits[at] == math.inf:
            if stage.advance is not None:
                visits.append((here, at, None))
            continue
        output = _checked(stage.answer(state), len(here), at, outputs)
        sure, memory = _sure(output, float(limits[at]), rule, here, at, memory)
        visits.append((here, at, sure))
        outputs.append(output[sure])
        if bool(sure.all()):
            break
        rows = (~sure).nonzero().squeeze(1)
        here, state, memory = here[rows], _take(state, rows), _take(memory, rows)
    return _answer(visits, outputs, num_inputs, len(stages))


@dataclass(frozen=True)
class _Memoryless:
    """A confidence as a rule."""

    confidence: Confidence

    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        return self.confidence(logits), None


def _skip(limits: np.ndarray[Any, Any], skip: Collection[int]) -> None:
    """Write +inf where a stage is to be skipped."""
    for at in skip:
        if not 0 <= at < len(limits) - 1:
            raise InputError(
                f"a skipped stage is one of 0 to {len(limits) - 2} (the last of {len(limits)} "
                f"always answers), got {at}"
            )
        limits[at] = math.inf


def _sure(
    output: Tensor,
    limit: float,
    rule: StoppingRule,
    here: Tensor,
    at: int,
    memory: State | None,
) -> tuple[Tensor, State | None]:
    """Which of the n inputs are answered here, (n,) bool, and what the rule remembers."""
    if limit == -math.inf:  # whoever comes here is answered: nobody need ask how sure
        return torch.ones(len(here), dtype=torch.bool, device=here.device), None
    try:
        sureness, memory = rule.sureness(output, at, memory)
    except RouteError as error:
        _refuse_nan(output, here, at, error)
        raise
    if sureness.shape != here.shape:
        raise RouteError(
            f"a confidence is one number per input: for {len(here)} inputs at stage {at} "
            f"the shape is {tuple(sureness.shape)}"
        )
    _refuse_nan(sureness[:, None], here, at, None)
    return sureness >= limit, memory


def _refuse_nan(rows: Tensor, here: Tensor, at: int, cause: Exception | None) -> None:
    """Name the input that has NaN: the row alone would not say, as others have left before."""
    nan = rows.isnan().flatten(1).any(dim=1)
    if bool(nan.any()):
        raise RouteError(
            f"answers and confidences must be numbers, got NaN for input "
            f"{int(here[nan.nonzero()[0, 0]])} at stage {at}: look for NaN in that input or in "
            "the weights of that stage"
        ) from cause


def _checked(output: Any, rows: int, at: int, earlier: list[Tensor]) -> Tensor:
    """The answer of a stage, refused unless (n, ..., C) in the shape and dtype of those before."""
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != rows:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"a stage answers with a tensor ({rows}, classes) for {rows} inputs, "
            f"stage {at} gave {got}"
        )
    if earlier and (output.shape[1:], output.dtype) != (earlier[0].shape[1:], earlier[0].dtype):
        raise InputError(
            f"stages must answer alike: stage {at} gave {_words(output)}, one before "
            f"{_words(earlier[0])}"
        )
    return output


def _words(output: Tensor) -> str:
    if output.ndim == 2:
        return f"{output.shape[1]} classes in {output.dtype}"
    return f"{tuple(output.shape[1:])} per input in {output.dtype}"


def _answer(
    visits: list[tuple[Tensor, int, Tensor | None]],
    outputs: list[Tensor],
    num_inputs: int,
    num_stages: int,
) -> Answer:
    """Put the outputs back in the order of the inputs, and the visits into a route."""
    answered = torch.cat([here[sure] for here, _, sure in visits if sure is not None])
    output = torch.cat(outputs)[answered.argsort()]
    dtype = output.dtype if output.is_floating_point() else torch.get_default_dtype()
    route = Route.from_triples(
        torch.cat([here for here, _, _ in visits]),
        torch.cat([torch.full_like(here, at) for here, at, _ in visits]),
        torch.cat(
            [
                (torch.zeros_like(here) if sure is None else sure).to(dtype)
                for here, _, sure in visits
            ]
        ),
        num_inputs=num_inputs,
        num_branches=num_stages,
    )
    return Answer(output, route)


def _rows(state: State) -> tuple[int, torch.device]:
    """How many inputs a state holds, and where."""
    leaves = list(_leaves(state))
    if not leaves:
        raise InputError("the input of a staged run holds at least one tensor, got none")
    counts = [leaf.shape[0] if leaf.ndim else None for leaf in leaves]
    count = counts[0]
    if count is None or any(c != count for c in counts):
        raise InputError(
            "the tensors of a staged run share their first dimension, one row per input, "
            f"got shapes {[tuple(leaf.shape) for leaf in leaves]}"
        )
    return count, leaves[0].device


def _leaves(state: State) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:
            yield from _leaves(part)
    elif isinstance(state, dict):
        for part in state.values():
            yield from _leaves(part)
    elif state is not None:
        raise InputError(
            "the state of a staged run is a tensor, or tuples, lists and dicts of tensors, "
            f"got {type(state).__name__}"
        )


def _take(state: State, rows: Tensor) -> State:
    """The state of some of the inputs only."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_take(part, rows) for part in state))
    if isinstance(state, tuple | list):
        return type(state)(_take(part, rows) for part in state)
    if isinstance(state, dict):
        return {name: _take(part, rows) for name, part in state.items()}
    return None
