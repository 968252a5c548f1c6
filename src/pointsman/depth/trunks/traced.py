"""Any network whose forward runs the same steps for every input, cut after its modules.

The state at a cut is every value that is alive across it, so that connections which skip the cut
work. See `tracing` for how the steps are found.

Legend: n inputs, B blocks.
"""

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from pointsman.depth.trunks.blocks import Alive, Block, Plan, references, step_of
from pointsman.depth.trunks.rows import (
    blank_row,
    checked_batch,
    count_rows,
    several_rows,
    take_rows,
    tensors,
)
from pointsman.depth.trunks.tracing import SizedTracer, traced
from pointsman.depth.trunks.walking import check_walk
from pointsman.errors import InputError
from pointsman.run import State

OUT = "out"  # in a state, what the block before gave
HALF = 0.5  # a module that holds more than this share of all weights is opened by itself


class TracedTrunk(nn.Module):
    """A network cut after its modules, found by tracing.

    Args:
        model: shared, not copied; its forward takes a tensor, or tensors by name.
        example: a batch of at least one input: a tensor, or a dict of the arguments by name.
        cuts: dotted names of modules, at any depth, after which to cut besides. A module that a cut
            lies in is opened: there, which steps run must not hang on the input.

    Attributes:
        names: of the B blocks: modules that run once and after which one value alone is alive
            (through lists, and through a module that holds more than half of all weights), and
            those of `cuts`; the last is the last module that runs.
        channels: the dimension of features that holds the channels.

    Raises:
        InputError: a forward that cannot be traced, or a network that cannot be cut in two.
    """

    def __init__(self, model: nn.Module, example: Any, *, cuts: Sequence[int | str] = ()) -> None:
        super().__init__()
        self.model = model
        checked_batch(example)
        trial = several_rows(example, 3)
        first = trial if isinstance(trial, Mapping) else {"": trial}
        self._inputs = {name: tuple(x.shape[1:]) for name, x in first.items()}
        named = [cut for cut in cuts if isinstance(cut, str)]
        self._plans, self.names = _plans(model, trial, named)
        self.channels = _channels(model, self._plans[0])
        check_walk(self, trial)

    def forward(self, x: Any) -> Tensor:
        """The network itself."""
        output: Tensor = self.model(**x) if isinstance(x, Mapping) else self.model(x)
        return output

    def begin(self, x: Any) -> State:
        """The input, by the name of forward's argument.

        Raises:
            InputError: inputs of other sizes than the example where these were built in.
        """
        if not count_rows(x):
            return take_rows(self.begin(blank_row(x)), slice(0, 0))
        plan = self._plans[self.model.training]
        given = dict(x) if isinstance(x, Mapping) else {plan.first: x}
        sizes = {name: tuple(part.shape[1:]) for name, part in given.items()}
        known = self._inputs if isinstance(x, Mapping) else {plan.first: self._inputs.get("")}
        if plan.sized and sizes != known:
            raise InputError(
                f"{type(self.model).__name__} was cut for inputs of the sizes {known}, which its "
                f"forward looks at, got {sizes}: cut it again with an example of that size"
            )
        return {OUT: given.pop(plan.first), **given}

    def block(self, at: int, state: State) -> State:
        """The steps up to the next cut."""
        if not count_rows(state):
            return take_rows(self.block(at, blank_row(state)), slice(0, 0))
        return self._plans[self.model.training].blocks[at].run(self.model, state)

    def features(self, state: State) -> Tensor:
        """What the module at the cut gave."""
        out: Tensor = state[OUT]
        return out

    def finish(self, state: State) -> Tensor:
        """The last block gave the logits already."""
        out: Tensor = state[OUT]
        return out


def _plans(
    model: nn.Module, trial: Any, cuts: list[str]
) -> tuple[tuple[Plan, Plan], tuple[str, ...]]:
    """The blocks in evaluation and in training mode, and their names."""
    trials = [_arguments(model, take_rows(trial, slice(0, n))) for n in (2, 3)]
    try:
        opened = _opened(model, cuts, HALF)
        tracers = [traced(model, opened, trials, training) for training in (False, True)]
    except InputError:  # perhaps what holds most of the weights had better stay closed
        opened = _opened(model, cuts, 1.0)
        tracers = [traced(model, opened, trials, training) for training in (False, True)]
    ends = [_ends(tracer, cuts) for tracer in tracers]
    names = [name for name in ends[0] if name in ends[1]]
    if len(names) < 2:
        raise InputError(
            f"{type(model).__name__} cannot be cut in two: no module of it runs once with nothing "
            "running beside it; name modules to cut after, or give the parts as a list"
        )
    evaluation, training = (
        _plan(tracer, [end[name] for name in names])
        for tracer, end in zip(tracers, ends, strict=True)
    )
    return (evaluation, training), tuple(names)


def _arguments(model: nn.Module, x: Any) -> dict[str, Any]:
    if isinstance(x, Mapping):
        return dict(x)
    return {next(iter(inspect.signature(model.forward).parameters)): x}


def _opened(model: nn.Module, cuts: Sequence[str], share: float) -> set[str]:
    """Modules to look into: around cuts, lists, and those with more than a share of all weights."""
    modules = dict(model.named_modules())
    opened = {
        ".".join(cut.split(".")[:depth])
        for cut in cuts
        if cut in modules
        for depth in range(1, cut.count(".") + 1)
    }
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()}
    most = share * sizes[""]
    for name, module in modules.items():  # parents come before their children
        parent = name.rpartition(".")[0]
        if name and (not parent or parent in opened or isinstance(modules[parent], nn.ModuleList)):
            own = not type(module).__module__.startswith("torch.nn")
            if isinstance(module, nn.Sequential) or (own and sizes[name] > most):
                opened.add(name)
    return opened


def _ends(tracer: SizedTracer, cuts: Sequence[str]) -> dict[str, int]:
    """By name of a block, the place of its last step; in order."""
    nodes = list(tracer.graph.nodes)
    output = len(nodes) - 1
    called = [node.target for node in nodes if node.op == "call_module"]
    ends: dict[int, str] = {}
    # Of modules that end at one place, the innermost gives the name.
    for name in sorted({*tracer.opened, *map(str, called)}, key=lambda name: name.count(".")):
        at = _end_of(tracer, nodes, name)
        if at is not None and _alone(tracer, nodes, at):
            ends[at] = name
    last = str(called[-1]) if called else "end"
    ends = {at: name for at, name in ends.items() if name != last}
    for cut in cuts:
        place = _end_of(tracer, nodes, cut, wanted=True)
        if place is not None:
            ends[place] = cut
    ends[output - 1] = ends.get(output - 1, last)
    return {name: at for at, name in sorted(ends.items())}


def _alone(tracer: SizedTracer, nodes: list[fx.Node], at: int) -> bool:
    """Whether what a step gives is all that later steps use, sizes apart."""
    beside = [tracer.values[node][0] for node in _alive(nodes, at) if node is not nodes[at]]
    return isinstance(tracer.values[nodes[at]][0], Tensor) and not tensors(beside)


def _end_of(
    tracer: SizedTracer, nodes: list[fx.Node], name: str, *, wanted: bool = False
) -> int | None:
    """The place of the last step of a module; None where it does not run, or several times."""
    if name in tracer.opened:
        stacks = [node.meta.get("nn_module_stack") or {} for node in nodes]
        places = [at for at, stack in enumerate(stacks) if name in stack]
        several = any(f"{name}@1" in stack for stack in stacks)
    else:
        places = [
            at for at, node in enumerate(nodes) if node.op == "call_module" and node.target == name
        ]
        several = len(places) > 1
    if several and wanted:
        raise InputError(
            f"the module {name!r} runs several times, so there is no one place after it: cut after "
            "a module that runs once"
        )
    return None if several or not places else places[-1]


def _alive(nodes: list[fx.Node], at: int) -> list[fx.Node]:
    """Values up to a step that later steps use; parameters are at hand anywhere."""
    place = {node: number for number, node in enumerate(nodes)}
    return [
        node
        for node in nodes[: at + 1]
        if node.op != "get_attr" and any(place[user] > at for user in node.users)
    ]


def _plan(tracer: SizedTracer, ends: list[int]) -> Plan:
    nodes = list(tracer.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    result = nodes[-1].args[0]
    if not isinstance(result, fx.Node) or not isinstance(tracer.values[result][0], Tensor):
        raise InputError("a network to cut gives one tensor, its logits")
    steps = {node: step_of(node) for node in nodes if node.op not in ("placeholder", "output")}
    crossing = [_crossing(tracer, inputs, inputs[0])]
    for end in ends[:-1]:
        out = nodes[end]
        alive = [node for node in _alive(nodes, end) if node is not out]
        crossing.append(_crossing(tracer, [out, *alive], out))
    crossing.append(_crossing(tracer, [result], result))
    attributes = [steps[node] for node in nodes if node.op == "get_attr"]
    blocks = []
    for at, (start, stop) in enumerate(pairwise([-1, *ends])):
        own = [steps[n] for n in nodes[start + 1 : stop + 1] if n in steps and n.op != "get_attr"]
        used = {name for step in own for name in references(step)}
        needed = [step for step in attributes if step.name in used]
        blocks.append(Block(crossing[at], (*needed, *own), crossing[at + 1]))
    shapes = tuple(tuple(tensors(tracer.values[nodes[end]][1])[0].shape) for end in ends)
    return Plan(str(inputs[0].target), tuple(blocks), tracer.sized or _carries(crossing), shapes)


def _crossing(tracer: SizedTracer, nodes: Sequence[fx.Node], out: fx.Node) -> tuple[Alive, ...]:
    """How each value that crosses a cut is kept."""
    found = []
    for node in nodes:
        two, three = tracer.values[node]
        rows: int | None = None
        if isinstance(two, Tensor):
            each = len(two) // 2 if two.ndim else 0
            grew = each > 0 and (len(two), len(three)) == (2 * each, 3 * each)
            rows = each if grew else 0
        elif tensors([two]):
            raise InputError(
                f"the cut after {out.target!r} goes through a {type(two).__name__} of tensors, "
                f"{node.name}: cut before or after it"
            )
        key = OUT if node is out else node.name
        if node.op == "placeholder" and node is not out:
            key = str(node.target)
        found.append(
            Alive(node.name, key, rows, (None, None) if rows is not None else (two, three))
        )
    return tuple(found)


def _carries(crossing: Sequence[tuple[Alive, ...]]) -> bool:
    """Whether sizes other than the number of inputs cross a cut."""

    def constant(two: Any, three: Any) -> bool:
        if isinstance(two, tuple | list):
            return any(constant(a, b) for a, b in zip(two, three, strict=True))
        return isinstance(two, int) and two == three

    return any(
        constant(*alive.sizes) for alives in crossing for alive in alives if alive.rows is None
    )


def _channels(model: nn.Module, plan: Plan) -> int:
    """The last dimension where sequences (n, S, D) are normalised over D, else the second."""
    widths = {
        module.normalized_shape[-1]
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
    }
    return -1 if any(len(s) == 3 and s[-1] in widths for s in plan.shapes) else 1
