"""Members of a pool: anything that classifies, seen as X -> probabilities (n, C) in float64.

Three kinds are known: scikit-learn classifiers (`predict_proba`, or else `decision_function` turned
into probabilities by a softmax), torch modules that give logits, and plain callables that give
probabilities.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import expit, softmax
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from pointsman.cost import Cost, compare_latency, flops_per_input
from pointsman.errors import InputError, UnitError
from pointsman.run import evaluating

Array = npt.NDArray[Any]

ROWS_TIMED = 256  # a batch that is large enough to hide the overhead of a call
SUM_TOLERANCE = 1e-3  # float16 probabilities still pass, logits do not


def label(member: Any, at: int) -> str:
    """How errors name a member."""
    name = getattr(member, "__name__", None) or type(member).__name__
    return f"member {at} ({name})"


def check_members(members: Any, *, prefit: bool) -> list[Any]:
    """The members as a list, refused unless each is of a known kind, and fitted if `prefit`.

    Raises:
        InputError: no member, a class instead of an object, an unknown kind, one that is not
            fitted, or one that cannot be fitted although it should be.
    """
    if not isinstance(members, Sequence) or not members:
        got = "none" if isinstance(members, Sequence) else type(members).__name__
        raise InputError(f"members is a list with at least one classifier, got {got}")
    for at, member in enumerate(members):
        name = label(member, at)
        if isinstance(member, type):
            raise InputError(f"{name} is a class: give an object, as in {member.__name__}()")
        if prefit:
            _check_fitted(member, name)
        elif not (hasattr(member, "fit") and hasattr(member, "get_params")):
            raise InputError(
                f"{name} is no scikit-learn classifier and cannot be fitted here: train it "
                "first and give prefit=True"
            )
    return list(members)


def _check_fitted(member: Any, name: str) -> None:
    if isinstance(member, nn.Module):
        return
    if hasattr(member, "fit"):
        try:
            check_is_fitted(member)
        except NotFittedError:
            raise InputError(
                f"{name} is not fitted: fit it first, or let the cascade do so with prefit=False"
            ) from None
        if hasattr(member, "predict_proba") or hasattr(member, "decision_function"):
            return
    elif callable(member):
        return
    raise InputError(
        f"{name} gives no probabilities: a member has predict_proba or decision_function, or is a "
        "torch module giving logits, or a callable from X to probabilities"
    )


def probabilities(member: Any, X: Array, at: int) -> npt.NDArray[np.float64]:
    """(n, C) float64, rows summing to one, columns in the member's own order.

    Raises:
        InputError: the member takes no input of this shape, or what it gives is not probabilities.
    """
    name = label(member, at)
    width = getattr(member, "n_features_in_", None)
    if width is not None and X.ndim == 2 and X.shape[1] != width:
        raise InputError(f"{name} was fitted on {width} features, X has {X.shape[1]}")
    given = np.asarray(_raw(member, X, name), dtype=np.float64)
    if given.ndim != 2 or len(given) != len(X):
        raise InputError(
            f"a member gives one row of class probabilities per input: for {len(X)} inputs "
            f"{name} gave shape {given.shape}"
        )
    wrong = ~np.isfinite(given).all(axis=1)
    if wrong.any():
        raise InputError(f"{name} gave a number that is not finite for input {wrong.argmax()}")
    wrong = (np.abs(given.sum(axis=1) - 1) > SUM_TOLERANCE) | (given < 0).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{name} must give probabilities that sum to one, got {np.round(given[row], 4)} for "
            f"input {row}: wrap it so that it applies a softmax"
        )
    return given


def _raw(member: Any, X: Array, name: str) -> Any:
    if isinstance(member, nn.Module):
        return _module_probabilities(member, X, name)
    columns = getattr(member, "feature_names_in_", None)
    # Fitted on a table, a scikit-learn model warns when it is given an array without names.
    x = X if columns is None else pd.DataFrame(X, columns=columns)
    if hasattr(member, "predict_proba"):
        return member.predict_proba(x)
    if hasattr(member, "decision_function"):
        scores = np.asarray(member.decision_function(x), dtype=np.float64)
        if scores.ndim == 1:  # two classes: the score is the log-odds of the second
            return np.stack([expit(-scores), expit(scores)], axis=1)
        return softmax(scores, axis=1)
    given = member(x)
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else given


def _module_probabilities(module: nn.Module, X: Array, name: str) -> Array:
    with evaluating(module), torch.no_grad():
        try:
            logits = module(as_input(module, X))
        except RuntimeError as error:  # torch's only word for a wrong shape
            reason = str(error).splitlines()[0]
            raise InputError(f"{name} does not take X of shape {X.shape}: {reason}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{name} must give logits (inputs, classes), got {got}")
    return logits.double().softmax(dim=1).cpu().numpy()


def as_input(module: nn.Module, X: Array) -> Tensor:
    """X on the module's device, in its floating dtype (float32 where it has no parameters)."""
    owned = [*module.parameters(), *module.buffers()]
    device = owned[0].device if owned else torch.device("cpu")
    dtype = next((t.dtype for t in owned if t.is_floating_point()), torch.float32)
    return torch.as_tensor(np.ascontiguousarray(X)).to(device, dtype)


def shared_classes(members: Sequence[Any], widths: Sequence[int], y: Array) -> Array:
    """The classes (C,) that all members know; without `classes_` anywhere, they come from y.

    Args:
        members: fitted.
        widths: how many probabilities each member gives.
        y: labels, for members that do not say which classes they know.

    Raises:
        InputError: members know different classes, or another number than they have outputs.
    """
    known: Array | None = None
    first = ""
    for at, member in enumerate(members):
        own = getattr(member, "classes_", None)
        if own is None:
            continue
        if known is None:
            known, first = np.sort(np.asarray(own)), label(member, at)
        elif not np.array_equal(known, np.sort(np.asarray(own))):
            raise InputError(
                f"members must know the same classes: {first} knows {_few(known)}, "
                f"{label(member, at)} knows {_few(np.asarray(own))}"
            )
    if known is None:
        known = _classes_from_labels(y, widths[0])
    for at, (member, width) in enumerate(zip(members, widths, strict=True)):
        if width != len(known):
            raise InputError(
                f"{label(member, at)} gives {width} probabilities for the {len(known)} classes "
                f"{_few(known)}: members must answer for the same classes"
            )
    return known


def _classes_from_labels(y: Array, width: int) -> Array:
    seen = np.unique(y)
    if len(seen) == width:
        return seen
    if np.issubdtype(seen.dtype, np.integer) and seen[0] >= 0 and seen[-1] < width:
        return np.arange(width)  # some class does not occur in y
    raise InputError(
        f"the members give {width} probabilities and y holds {len(seen)} classes, {_few(seen)}: "
        "which is which cannot be known; give labels 0 to C - 1, or inputs of every class"
    )


def class_columns(member: Any, classes: Array) -> Array | None:
    """Where each class is among the member's columns; None where they are in order already."""
    own = getattr(member, "classes_", None)
    if own is None or np.array_equal(own, classes):
        return None
    place = {value: at for at, value in enumerate(np.asarray(own).tolist())}
    return np.array([place[value] for value in classes.tolist()])


def _few(classes: Array) -> str:
    shown = ", ".join(repr(c) for c in classes.tolist()[:6])
    return f"{shown}, … ({len(classes)})" if len(classes) > 6 else shown


def given_costs(costs: Any, members: int) -> Cost:
    """Costs per input of each member, amount (M,), from what a user gave.

    Args:
        costs: one Cost of M amounts, or M costs in one unit.
        members: M.

    Raises:
        InputError: another number of costs, or an amount that is not finite and at least 0.
        UnitError: costs without a unit, or in different units.
    """
    if isinstance(costs, Cost):
        amounts, unit = np.asarray(costs.amount, dtype=float), costs.unit
    else:
        if not all(isinstance(cost, Cost) for cost in costs):
            raise UnitError(
                f"a cost has a unit, got {list(costs)!r}: give Cost([...], unit) or a list of Cost"
            )
        units = [cost.unit for cost in costs]
        if len(set(units)) > 1:
            raise UnitError(f"members must be paid in one unit, got {units}: use .to(...) on some")
        amounts = np.array([float(cost) for cost in costs])
        unit = units[0] if units else ""
    if amounts.shape != (members,):
        raise InputError(f"{members} members need {members} costs, got shape {amounts.shape}")
    if not np.isfinite(amounts).all() or (amounts < 0).any():
        raise InputError(f"a cost is a finite number of at least 0, got {amounts.tolist()}")
    return Cost(amounts, unit)


def found_costs(members: Sequence[Any], X: Array) -> Cost:
    """Costs per input of each member, amount (M,): counted MFLOPs if all are torch, else ms.

    Times are medians of interleaved calls on one batch of at most 256 rows of X, divided by its
    rows: what an input costs inside a batch, not alone.
    """
    if all(isinstance(member, nn.Module) for member in members):
        with evaluating(*members):
            counted = [flops_per_input(m, as_input(m, X[:1])) for m in members]
        return Cost(np.array([float(cost) for cost in counted]), "MFLOPs")
    rows = X[:ROWS_TIMED]
    calls = {str(at): partial(probabilities, member, rows, at) for at, member in enumerate(members)}
    times = compare_latency(calls, warmup=1, repeats=5)
    return Cost(np.array([float(t.median) / len(rows) for t in times.values()]), "ms")


def split(y: Array, share: float, seed: int) -> tuple[Array, Array]:
    """Rows to train on and rows to hold out, class by class; every class is trained on.

    Raises:
        InputError: no class has a second input, so nothing can be held out.
    """
    rng = np.random.default_rng(seed)
    train, rest = [], []
    for value in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == value))
        held = min(math.ceil(share * len(rows)), len(rows) - 1)
        rest.append(rows[:held])
        train.append(rows[held:])
    held_rows = np.sort(np.concatenate(rest))
    if len(held_rows) == 0:
        raise InputError(
            f"thresholds need held-out inputs, but no class has more than one sample among "
            f"{len(y)}: give more data"
        )
    return np.sort(np.concatenate(train)), held_rows


def finite(X: Array) -> Array:
    """X itself.

    Raises:
        InputError: NaN or infinity, naming the first.
    """
    wrong = ~np.isfinite(X)
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        value = "NaN" if np.isnan(X[where]) else "infinity"
        raise InputError(
            f"X must be finite, got {value} at row {where[0]}, column {where[1]} "
            f"({int(wrong.sum())} such values): fill or drop them first"
        )
    return X
