"""What a computation spends: FLOPs counted, time measured, prices per unit; always with its unit.

A `Cost` is an amount and a unit. Costs of one unit add up and compare; costs of different units do
not, and saying so is an error rather than a wrong chart. FLOPs are counted by running the module
under torch's own counter, so that no formula of ours can drift from what is executed.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pointsman.errors import InputError, UnitError
from pointsman.modules import evaluating

Amount = float | np.ndarray[Any, Any] | Tensor

# Units of one kind, as multiples of the first: the only conversions there are.
SCALES: tuple[Mapping[str, float], ...] = (
    {"FLOPs": 1.0, "kFLOPs": 1e3, "MFLOPs": 1e6, "GFLOPs": 1e9, "TFLOPs": 1e12, "PFLOPs": 1e15},
    {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0},
    {"tokens": 1.0, "ktokens": 1e3, "Mtokens": 1e6},
    {"US$": 1.0, "US cents": 1e-2},
)


@dataclass(frozen=True, eq=False)
class Cost:
    """An amount with its unit; the amount is a number, or an array or tensor of any shape.

    Costs of equal units add, subtract and compare; a number scales a cost; the ratio of two costs
    is a plain number.

    Raises:
        UnitError: two costs of different units meet. Convert one with `to` first.
    """

    amount: Amount
    unit: str

    __array_ufunc__ = None  # array * cost is a cost, not an array of costs

    def _same_unit(self, other: object, verb: str) -> Amount:
        if not isinstance(other, Cost):
            raise UnitError(
                f"a cost can only be {verb} another cost, got {other!r}: "
                f'give it a unit, as in Cost({other!r}, "{self.unit}")'
            )
        if other.unit != self.unit:
            raise UnitError(
                f"costs must have one unit to be {verb} each other, got {self.unit!r} and "
                f"{other.unit!r}: convert with .to(...), or give both in one unit"
            )
        return other.amount

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.amount + self._same_unit(other, "added to"), self.unit)

    def __radd__(self, other: object) -> "Cost":
        if isinstance(other, int | float) and other == 0:  # the start value of sum()
            return self
        raise UnitError(f"a cost can only be added to another cost, got {other!r}")

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.amount - self._same_unit(other, "subtracted from"), self.unit)

    def __mul__(self, factor: Amount) -> "Cost":
        if isinstance(factor, Cost):
            raise UnitError("the product of two costs has no meaning here: multiply by a number")
        return Cost(self.amount * factor, self.unit)

    __rmul__ = __mul__

    @overload
    def __truediv__(self, other: "Cost") -> Any: ...
    @overload
    def __truediv__(self, other: Amount) -> "Cost": ...
    def __truediv__(self, other: "Cost | Amount") -> Any:
        if isinstance(other, Cost):
            return self.amount / self._same_unit(other, "divided by")
        return Cost(self.amount / other, self.unit)

    def __lt__(self, other: "Cost") -> Any:
        return self.amount < self._same_unit(other, "compared with")

    def __le__(self, other: "Cost") -> Any:
        return self.amount <= self._same_unit(other, "compared with")

    def __gt__(self, other: "Cost") -> Any:
        return self.amount > self._same_unit(other, "compared with")

    def __ge__(self, other: "Cost") -> Any:
        return self.amount >= self._same_unit(other, "compared with")

    def __eq__(self, other: object) -> Any:
        return self.amount == self._same_unit(other, "compared with")

    def __ne__(self, other: object) -> Any:
        return self.amount != self._same_unit(other, "compared with")

    __hash__ = None  # type: ignore[assignment]  # amounts may be arrays

    def __float__(self) -> float:
        return float(self.amount)

    def __str__(self) -> str:
        amount = self.amount
        return f"{amount:.4g} {self.unit}" if isinstance(amount, float) else f"{amount} {self.unit}"

    def sum(self) -> "Cost":
        """The total over every element, a cost of one number."""
        return Cost(float(np.sum(_array(self.amount))), self.unit)

    def mean(self) -> "Cost":
        """The mean over every element, a cost of one number."""
        return Cost(float(np.mean(_array(self.amount))), self.unit)

    def to(self, unit: str) -> "Cost":
        """The same cost in another unit of its kind, such as MFLOPs in GFLOPs.

        Raises:
            UnitError: the two units measure different things, or one is not known.
        """
        if unit == self.unit:
            return self
        for scale in SCALES:
            if unit in scale and self.unit in scale:
                return Cost(self.amount * (scale[self.unit] / scale[unit]), unit)
        raise UnitError(
            f"{self.unit!r} cannot be converted to {unit!r}: known kinds are "
            + "; ".join(", ".join(scale) for scale in SCALES)
        )


@dataclass(frozen=True)
class Price:
    """What one `per` of a quantity costs, such as `Price(Cost(24.7, "US$"), per="Mtokens")`."""

    cost: Cost
    per: str

    def of(self, quantity: Cost) -> Cost:
        """The cost of a quantity, converted to `per` first.

        Raises:
            UnitError: the quantity is of another kind than `per`.
        """
        return self.cost * quantity.to(self.per).amount


def count_flops(run: Callable[..., Any], *inputs: Any) -> Cost:
    """FLOPs of one call, in MFLOPs, counted by torch while it runs.

    A multiply and an add are two FLOPs. Matrix products (grouped ones too), convolutions, attention
    and recurrent layers are counted; elementwise work, normalisation and gathers are not. Attention
    is run in its plain form meanwhile, because the fused kernels are not in torch's list.

    Args:
        run: a module, which is counted in evaluation mode and left as it was, or any callable on
            tensors, which is run as it is.
        *inputs: its positional arguments.
    """
    modules = [run] if isinstance(run, torch.nn.Module) else []
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED_BY_TORCH)
    # Evaluation mode: batch statistics must not move because someone counted.
    with evaluating(*modules), torch.no_grad(), plain_attention(), counter:
        run(*inputs)
    return Cost(counter.get_total_flops() / 1e6, "MFLOPs")


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as matrix products, which are counted, instead of kernels, which are not."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _matrix_vector_flops(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
    """2 FLOPs for each entry of the largest operand: mv, addmv and dot."""
    return 2 * max(int(math.prod(shape)) for shape in shapes if isinstance(shape, torch.Size))


def _addbmm_flops(start: Any, a: Any, b: Any, out_shape: Any = None, **scales: Any) -> int:
    return int(2 * math.prod(a) * b[-1])


def _grouped_mm_flops(a: Any, b: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Groups split what they share, so they count only where both operands have one each."""
    groups = a[0] if len(a) == len(b) == 3 else 1
    return int(2 * groups * a[-2] * a[-1] * b[-1])


def _recurrent_flops(
    x: Any, weights: Any, *rest: Any, out_shape: Any = None, **options: Any
) -> int:
    """2 FLOPs for each entry of the weight matrices, at each step of each sequence.

    oneDNN passes the two matrices of one layer one by one, cuDNN those of every layer in a list.
    """
    matrices = [weights, rest[0]] if isinstance(weights, torch.Size) else weights
    return int(2 * math.prod(x[:-1]) * sum(math.prod(w) for w in matrices if len(w) == 2))


# What torch's own counter leaves at zero FLOPs.
UNCOUNTED_BY_TORCH: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _matrix_vector_flops,
    torch.ops.aten.addmv: _matrix_vector_flops,
    torch.ops.aten.dot: _matrix_vector_flops,
    torch.ops.aten.addbmm: _addbmm_flops,
    torch.ops.aten._grouped_mm: _grouped_mm_flops,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
}


def flops_per_input(run: Callable[..., Any], example: Tensor) -> Cost:
    """MFLOPs that one input of a batch costs.

    Args:
        run: a module or callable on one batch.
        example: a batch (T, ...); the count of the whole batch is divided by T.

    Raises:
        InputError: the example is an empty batch.
    """
    if len(example) == 0:
        raise InputError("FLOPs are counted on a batch of at least one input, got an empty one")
    return count_flops(run, example) / len(example)


@dataclass(frozen=True)
class Latency:
    """Time of one call in ms: the median over repeats, with the quartiles around it."""

    median: Cost
    low: Cost
    high: Cost
    repeats: int

    @classmethod
    def from_seconds(cls, seconds: Sequence[float]) -> Self:
        """Summary of measured calls, in seconds each."""
        low, median, high = (float(q) * 1e3 for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
        return cls(Cost(median, "ms"), Cost(low, "ms"), Cost(high, "ms"), len(seconds))


def measure_latency(
    run: Callable[..., Any], *inputs: Any, warmup: int = 3, repeats: int = 15
) -> Latency:
    """Time of one call, in ms: median and quartiles after a warm-up, without gradients.

    Args:
        run: a module or any callable.
        *inputs: its positional arguments.
        warmup: calls that are not counted, first.
        repeats: calls that are counted, at least one.
    """
    return compare_latency({"it": lambda: run(*inputs)}, warmup=warmup, repeats=repeats)["it"]


def compare_latency(
    runs: Mapping[str, Callable[[], Any]], *, warmup: int = 3, repeats: int = 15
) -> dict[str, Latency]:
    """Times of several calls, interleaved, so that a drift of the machine hits all alike.

    Args:
        runs: name to a callable without arguments.
        warmup: rounds that are not counted, first.
        repeats: rounds that are counted, at least one.

    Raises:
        InputError: fewer than one counted round was asked for.
    """
    if repeats < 1:
        raise InputError(f"at least one call must be counted, got repeats={repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for round_ in range(warmup + repeats):
            for name, run in runs.items():
                elapsed = _seconds(run)
                if round_ >= warmup:
                    seconds[name].append(elapsed)
    return {name: Latency.from_seconds(times) for name, times in seconds.items()}


def _seconds(run: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _array(amount: Amount) -> Any:
    # In float64, because NumPy has no bfloat16 and a sum in half precision would drift.
    return amount.detach().double().numpy(force=True) if isinstance(amount, Tensor) else amount
