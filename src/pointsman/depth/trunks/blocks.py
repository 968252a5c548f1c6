"""Steps of a traced network, gathered into the blocks between its cuts.

Plain data: made once by `traced`, never changed, free of the graph that they come from.

Legend: n inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from pointsman.depth.trunks.rows import count_rows, share, shared
from pointsman.depth.trunks.tracing import attribute
from pointsman.run import State


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step."""

    name: str


@dataclass(frozen=True)
class Step:
    """One node of a graph: `op` and `target` as torch.fx has them, arguments with `Ref`s."""

    name: str
    op: str
    target: Any
    args: Any
    options: Any

    def run(self, model: nn.Module, found: dict[str, Any]) -> Any:
        """Its value, given those of the steps before it by name."""
        if self.op == "get_attr":
            return attribute(model, self.target)

        def look_up(leaf: Any) -> Any:
            return found[leaf.name] if isinstance(leaf, Ref) else leaf

        args, options = _mapped((self.args, self.options), look_up)
        if self.op == "call_module":
            return model.get_submodule(self.target)(*args, **options)
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **options)
        return self.target(*args, **options)


@dataclass(frozen=True)
class Alive:
    """A value that crosses a cut.

    Attributes:
        name: of its step.
        key: in the state.
        rows: of one input in a tensor; 0: a tensor that all inputs share; None: no tensor.
        sizes: of what is no tensor, on two inputs and on three.
    """

    name: str
    key: str
    rows: int | None
    sizes: tuple[Any, Any]

    def kept(self, value: Any, n: int) -> Tensor | None:
        """As one row per input; None for what is no tensor, which is worked out again."""
        if self.rows is None:
            return None
        if self.rows == 0:
            return share(value, n)
        x: Tensor = value
        return x if self.rows == 1 else x.reshape(n, self.rows, *x.shape[1:])

    def back(self, state: State, n: int) -> Any:
        """The value, from the rows that are left."""
        if self.rows is None:
            return _size_at(self.sizes[0], self.sizes[1], n)
        rows: Tensor = state[self.key]
        if self.rows == 0:
            return shared(rows)
        return rows if self.rows == 1 else rows.flatten(0, 1)


@dataclass(frozen=True)
class Block:
    """The steps between two cuts, and what is alive at both."""

    before: tuple[Alive, ...]
    steps: tuple[Step, ...]
    after: tuple[Alive, ...]

    def run(self, model: nn.Module, state: State) -> State:
        """From the state at the cut before to the one after."""
        n = count_rows(state)
        found = {alive.name: alive.back(state, n) for alive in self.before}
        for step in self.steps:
            found[step.name] = step.run(model, found)
        kept = {alive.key: alive.kept(found[alive.name], n) for alive in self.after}
        return {key: rows for key, rows in kept.items() if rows is not None}


@dataclass(frozen=True, eq=False)
class Plan:
    """The blocks of a network in one mode."""

    first: str
    blocks: tuple[Block, ...]
    sized: bool
    shapes: tuple[tuple[int, ...], ...]  # of what is given at the cuts

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        return self  # never changes


def step_of(node: fx.Node) -> Step:
    """A node of a graph as a step."""

    def refer(leaf: Any) -> Any:
        return Ref(leaf.name) if isinstance(leaf, fx.Node) else leaf

    args, options = _mapped((node.args, node.kwargs), refer)
    return Step(node.name, node.op, node.target, args, options)


def _mapped(arguments: Any, function: Callable[[Any], Any]) -> Any:
    return map_aggregate(arguments, function)


def references(step: Step) -> set[str]:
    """Names of the steps whose values a step uses."""
    found: set[str] = set()

    def note(leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            found.add(leaf.name)
        return leaf

    _mapped((step.args, step.options), note)
    return found


def _size_at(two: Any, three: Any, n: int) -> Any:
    """A size on n inputs, from what it is on two and on three."""
    if isinstance(two, tuple | list):
        parts = [_size_at(a, b, n) for a, b in zip(two, three, strict=True)]
        return type(two)(parts)
    if isinstance(two, int) and not isinstance(two, bool):
        return two + (three - two) * (n - 2)
    return two
