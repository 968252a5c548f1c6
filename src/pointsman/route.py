"""Who goes where, at which weight: the one object that every level speaks.

Legend: T inputs, E branches, N routed pairs, K branches of one input, D width.

A `Route` is a list of pairs (input, branch, weight) sorted by input. `dispatch` brings the rows of
the inputs into the order of the branches, `combine` sums what the branches answered back into one
row an input. Both are single passes over memory, and each is the other's transpose, which is why
their gradients are written with one another below.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from pointsman._moves import Plan, move, narrow, offsets, tally
from pointsman.cost import Cost
from pointsman.errors import RouteError, UnitError


class BranchOrder(NamedTuple):
    """The pairs of a route sorted stably by branch; those of branch e lie at offsets[e:e + 2].

    Fields: `order` (N,) position of each pair in the route; `inputs` (N,) int64; `weights` (N,);
    `offsets` (E + 1,) int64.
    """

    order: Tensor
    inputs: Tensor
    weights: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Route:
    """Pairs (input, branch, weight), sorted by input; inside one in order of preference or visit.

    Inputs may have any number of branches, also none ("dropped"). Staged policies use the same
    object: an input that asked branches 0, 1 and 2 and was answered by 2 has three pairs with the
    weights 0, 0, 1, so that what it spent is counted in full.

    Shapes, types and devices are checked on construction. Values are not, because that would make
    the host wait for a GPU: `validate` does it.

    Args:
        inputs: (N,) int64, ascending.
        branches: (N,) int64.
        weights: (N,) floating point; gradients flow through them.
        num_inputs: T.
        num_branches: E.

    Raises:
        RouteError: a shape, type, device or count that breaks the above.
    """

    inputs: Tensor
    branches: Tensor
    weights: Tensor
    num_inputs: int
    num_branches: int

    def __post_init__(self) -> None:
        inputs, branches, weights = self.inputs, self.branches, self.weights
        if inputs.ndim != 1 or not inputs.shape == branches.shape == weights.shape:
            shapes = [tuple(t.shape) for t in (inputs, branches, weights)]
            raise RouteError(
                "inputs, branches and weights of a route must be three tensors of one shape (N,), "
                f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )
        for name, tensor in (("inputs", inputs), ("branches", branches)):
            if tensor.dtype != torch.int64:
                raise RouteError(
                    f"{name} of a route must be int64, got {tensor.dtype}: use .long()"
                )
        if not weights.dtype.is_floating_point:
            raise RouteError(
                f"weights of a route must be floating point, got {weights.dtype}: use .float()"
            )
        if not inputs.device == branches.device == weights.device:
            devices = ", ".join(str(t.device) for t in (inputs, branches, weights))
            raise RouteError(f"a route must lie on one device, got {devices}: use .to()")
        for name, count in (("num_inputs", self.num_inputs), ("num_branches", self.num_branches)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise RouteError(f"{name} must be a whole number of at least 0, got {count!r}")

    @classmethod
    def from_indices(
        cls, branches_TK: Tensor, weights_TK: Tensor | None = None, *, num_branches: int
    ) -> Self:
        """A route from the branches of each input; -1 marks an empty slot.

        On a GPU the host waits once, to learn how many slots are filled.

        Args:
            branches_TK: integers, in order of preference.
            weights_TK: floating point; None means ones in torch's default type.
            num_branches: E.

        Raises:
            RouteError: shapes or types that do not fit.
        """
        _require_2d(branches_TK, "branches", "(inputs, slots)")
        _require_integer(branches_TK, "branches")
        weights_TK = _ones_like(branches_TK) if weights_TK is None else weights_TK
        if weights_TK.shape != branches_TK.shape:
            raise RouteError(
                "weights must have the shape of the branches, "
                f"got {tuple(weights_TK.shape)} for {tuple(branches_TK.shape)}"
            )
        num_inputs, slots = branches_TK.shape
        branches, weights = branches_TK.reshape(-1).long(), weights_TK.reshape(-1)
        filled = (branches >= 0).nonzero().squeeze(1)
        if filled.shape[0] < branches.shape[0]:
            branches, weights = branches.index_select(0, filled), weights.index_select(0, filled)
        inputs = filled.div(max(slots, 1), rounding_mode="floor")
        route = cls(inputs, branches, weights, num_inputs, num_branches)
        if len(route) == num_inputs * slots:
            route.__dict__["_slots"] = slots  # of every input, which need not be counted again
        return route

    @classmethod
    def from_dense(cls, weights_TE: Tensor, mask_TE: Tensor | None = None) -> Self:
        """A route from a table of weights; branches of an input in ascending order.

        On a GPU the host waits once, to learn how many pairs there are.

        Args:
            weights_TE: floating point.
            mask_TE: bool, which pairs there are; None means those of nonzero weight.

        Raises:
            RouteError: shapes or types that do not fit.
        """
        _require_2d(weights_TE, "weights", "(inputs, branches)")
        mask_TE = weights_TE != 0 if mask_TE is None else mask_TE
        if mask_TE.dtype != torch.bool or mask_TE.shape != weights_TE.shape:
            raise RouteError(
                f"the mask must be bool of shape {tuple(weights_TE.shape)}, "
                f"got {mask_TE.dtype} of shape {tuple(mask_TE.shape)}"
            )
        inputs, branches = mask_TE.nonzero().unbind(1)
        weights = weights_TE.masked_select(mask_TE)  # in the order of nonzero, and quick backwards
        return cls(inputs, branches, weights, *weights_TE.shape)

    @classmethod
    def from_triples(
        cls,
        inputs_N: Tensor,
        branches_N: Tensor,
        weights_N: Tensor | None = None,
        *,
        num_inputs: int,
        num_branches: int,
    ) -> Self:
        """A route from pairs in any order; pairs of one input keep the order they are given in.

        Args:
            inputs_N: integers.
            branches_N: integers.
            weights_N: floating point; None means ones in torch's default type.
            num_inputs: T.
            num_branches: E.

        Raises:
            RouteError: shapes or types that do not fit.
        """
        _require_integer(inputs_N, "inputs")
        _require_integer(branches_N, "branches")
        weights_N = _ones_like(branches_N) if weights_N is None else weights_N
        # The three are compared in full before anything is moved.
        pairs = cls(inputs_N.long(), branches_N.long(), weights_N, num_inputs, num_branches)
        inputs, order = torch.sort(pairs.inputs, stable=True)
        return cls(
            inputs,
            pairs.branches.index_select(0, order),
            weights_N.index_select(0, order),
            num_inputs,
            num_branches,
        )

    def __len__(self) -> int:
        return self.inputs.shape[0]  # len(tensor) takes longer

    def validate(self) -> Self:
        """This route, after a look at every value. On a GPU the host waits for it.

        Raises:
            RouteError: an index out of range, inputs out of order, a pair given twice, or a weight
                that is not finite; the text names the first such pair.
        """
        inputs, branches = self.inputs, self.branches
        for name, ids, count in (
            ("input", inputs, self.num_inputs),
            ("branch", branches, self.num_branches),
        ):
            wrong = (ids < 0) | (ids >= count)
            self._refuse(wrong, f"every {name} must be at least 0 and below {count}")
        behind = torch.zeros_like(inputs, dtype=torch.bool)
        behind[1:] = inputs[1:] < inputs[:-1]
        self._refuse(behind, "inputs must be ascending (Route.from_triples sorts them)")
        keys, order = torch.sort(inputs * self.num_branches + branches, stable=True)
        again = torch.zeros_like(keys, dtype=torch.bool)
        again[order[1:]] = keys[1:] == keys[:-1]
        self._refuse(again, "an input may visit a branch once only")
        self._refuse(~self.weights.detach().isfinite(), "every weight must be finite")
        return self

    def _refuse(self, wrong_N: Tensor, rule: str) -> None:
        places = wrong_N.nonzero()
        if len(places):
            pair = int(places[0])
            raise RouteError(
                f"{rule}, got input {int(self.inputs[pair])}, branch {int(self.branches[pair])}, "
                f"weight {float(self.weights[pair]):g} at pair {pair} of {len(self)}"
            )

    @cached_property
    def _plan(self) -> Plan:
        # Few branches fit a narrow integer, and a narrow integer sorts in fewer passes.
        _, order = torch.sort(self.branches.to(narrow(self.num_branches)), stable=True)
        positions = torch.arange(len(self), device=order.device)
        inverse = torch.empty_like(order).scatter_(0, order, positions)
        slots = self.__dict__.get("_slots")
        if slots:
            input_offsets = torch.arange(0, len(self) + 1, slots, device=order.device)
        else:
            input_offsets = offsets(self.inputs, self.num_inputs)
        return Plan(
            order,
            inverse,
            self.inputs.index_select(0, order),
            offsets(self.branches, self.num_branches),
            input_offsets,
        )

    def by_branch(self) -> BranchOrder:
        """The pairs sorted stably by branch: what an executor walks through. The sort is cached."""
        plan = self._plan
        # The weights are taken anew: cached ones would keep a graph, or the lack of one.
        weights = self.weights.index_select(0, plan.order)
        return BranchOrder(plan.order, plan.inputs, weights, plan.branch_offsets)

    def load(self) -> Tensor:
        """(E,) int64: inputs that each branch received."""
        return tally(self.branches, self.num_branches)

    def branches_per_input(self) -> Tensor:
        """(T,) int64: branches that each input visited."""
        return tally(self.inputs, self.num_inputs)

    def dropped(self) -> Tensor:
        """(T,) bool: inputs that no branch took."""
        return self.branches_per_input() == 0

    def answered_by(self) -> Tensor:
        """(T,) int64: the branch of largest weight, the first of equals; -1 where dropped."""
        weights = self.weights.detach()
        best_T = weights.new_full((self.num_inputs,), -torch.inf)
        best_T.scatter_reduce_(0, self.inputs, weights, "amax")
        nowhere = len(self)
        places = torch.arange(nowhere, device=weights.device)
        places = torch.where(weights == best_T.index_select(0, self.inputs), places, nowhere)
        first_T = places.new_full((self.num_inputs,), nowhere)
        first_T.scatter_reduce_(0, self.inputs, places, "amin")
        return torch.cat([self.branches, self.branches.new_full((1,), -1)])[first_T]

    def cost(self, per_branch: Cost) -> Cost:
        """What each input spent: the sum over every branch it visited, in the unit given.

        Weights play no part, because what ran was paid for. Dropped inputs spend nothing.

        Args:
            per_branch: a cost whose amount is an array or tensor (E,), per input.

        Returns:
            A cost whose amount is (T,), an array if an array was given, else a tensor.

        Raises:
            UnitError: a bare number or tensor was given instead of a cost.
            RouteError: the amount is not of shape (E,).
        """
        if not isinstance(per_branch, Cost):
            raise UnitError(
                f"a route is priced with a Cost, got {type(per_branch).__name__}: "
                'give the unit, as in Cost(amounts, "MFLOPs")'
            )
        amount = per_branch.amount
        shape = tuple(amount.shape) if isinstance(amount, np.ndarray | Tensor) else ()
        if shape != (self.num_branches,):
            raise RouteError(
                f"the cost of a route needs one amount for each of {self.num_branches} branches, "
                f"got shape {shape}"
            )
        amount_E = torch.as_tensor(amount, device=self.branches.device)
        amount_T = amount_E.new_zeros(self.num_inputs)
        amount_T = amount_T.index_add(0, self.inputs, amount_E.index_select(0, self.branches))
        as_array = isinstance(amount, np.ndarray)
        return Cost(amount_T.numpy(force=True) if as_array else amount_T, per_branch.unit)

    def entropy(self) -> Tensor:
        """(T,) nats: entropy of each input's weights, taken as shares of their absolute sum.

        Zero where dropped. Computed in float32 or better; gradients flow.
        """
        size = self.weights.abs().to(_wide(self.weights.dtype))
        total_T = size.new_zeros(self.num_inputs).index_add(0, self.inputs, size)
        total = total_T.index_select(0, self.inputs)
        share = size / torch.where(total > 0, total, 1)
        # The logarithm of a harmless 1 instead of 0 keeps the gradient finite.
        terms = -share * torch.where(share > 0, share, 1).log()
        return torch.zeros_like(total_T).index_add(0, self.inputs, terms)

    def load_entropy(self) -> Tensor:
        """Scalar, nats: entropy of the shares of the load; log(E) when all are equally full."""
        share = self.load().to(_wide(self.weights.dtype)) / max(len(self), 1)
        entropy: Tensor = torch.special.entr(share).sum()
        return entropy

    def dispatch(self, x_TD: Tensor) -> Tensor:
        """Rows of the inputs in the order of the branches: branch e owns rows offsets[e:e + 2].

        Args:
            x_TD: (T, ...) of any type; the caller's type is kept.

        Returns:
            (N, ...).

        Raises:
            RouteError: another number of rows than inputs.
        """
        _require_rows(x_TD, self.num_inputs, "dispatch", "input")
        flat = x_TD.reshape(self.num_inputs, _width(x_TD))
        rows = move(flat, None, self._plan, out=True)
        return rows.reshape(len(self), *x_TD.shape[1:])

    def combine(self, rows_ND: Tensor, *, weighted: bool = True) -> Tensor:
        """One row an input again: the sum of its branches' rows, times its weights.

        Dropped inputs give zeros. Any order of gradients is available, as the backward pass is made
        of the same two moves.

        Args:
            rows_ND: (N, ...) floating point, in the order that `dispatch` gave.
            weighted: False adds the rows up as they are.

        Returns:
            (T, ...) of the type of the rows.

        Raises:
            RouteError: another number of rows than pairs, or rows and weights of different types
                (nothing is cast silently).
        """
        _require_rows(rows_ND, len(self), "combine", "pair")
        if not rows_ND.dtype.is_floating_point:
            raise RouteError(f"combine adds up floating point rows, got {rows_ND.dtype}")
        if weighted and self.weights.dtype != rows_ND.dtype:
            raise RouteError(
                f"rows and weights must have one type to be combined, got {rows_ND.dtype} rows and "
                f"{self.weights.dtype} weights: cast one of them"
            )
        flat = rows_ND.reshape(len(self), _width(rows_ND))
        summed = move(flat, self.weights if weighted else None, self._plan, out=False)
        return summed.reshape(self.num_inputs, *rows_ND.shape[1:])

    def to_dense(self) -> Tensor:
        """(T, E): the weights as a table, zeros elsewhere; gradients flow."""
        table = self.weights.new_zeros(self.num_inputs, self.num_branches)
        return table.index_put((self.inputs, self.branches), self.weights)

    def mask(self) -> Tensor:
        """(T, E) bool: which pairs there are, those of weight zero too."""
        shape = (self.num_inputs, self.num_branches)
        mask = torch.zeros(shape, dtype=torch.bool, device=self.inputs.device)
        mask[self.inputs, self.branches] = True
        return mask

    def to(self, device: torch.device | str) -> "Route":
        """The same route on another device."""
        return Route(
            self.inputs.to(device),
            self.branches.to(device),
            self.weights.to(device),
            self.num_inputs,
            self.num_branches,
        )

    def weighted(self, weights_N: Tensor) -> "Route":
        """The same pairs under other weights (N,); the sort by branch is kept."""
        route = Route(self.inputs, self.branches, weights_N, self.num_inputs, self.num_branches)
        known = ("_plan", "_slots")
        route.__dict__.update(
            {name: self.__dict__[name] for name in known if name in self.__dict__}
        )
        return route

    def detach(self) -> "Route":
        """The same route with weights that carry no gradient."""
        return self.weighted(self.weights.detach())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _width(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _ones_like(ids: Tensor) -> Tensor:
    return torch.ones(ids.shape, dtype=torch.get_default_dtype(), device=ids.device)


def _require_2d(tensor: Tensor, name: str, shape: str) -> None:
    if tensor.ndim != 2:
        raise RouteError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _require_integer(tensor: Tensor, name: str) -> None:
    dtype = tensor.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise RouteError(f"{name} must be integers, got {dtype}")


def _require_rows(tensor: Tensor, count: int, verb: str, noun: str) -> None:
    if tensor.ndim == 0 or tensor.shape[0] != count:
        raise RouteError(
            f"{verb} needs one row for each {noun} of the route, {count} in all, "
            f"got shape {tuple(tensor.shape)}"
        )
