"""What a network's forward does, as a list of steps: torch.fx, told what the sizes are.

Only the modules that a cut lies in are opened; all others stay what they are, one step each, with
whatever control flow and modes they have inside. Beside every step its values on two and on three
inputs are kept. So a branch on a size that does not hang on the number of inputs is taken as on the
example, and a branch on the numbers in the input, which no list of steps can follow, is refused
with the line where it stands.

Legend: n inputs.
"""

import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from pointsman.errors import InputError, reason

# What says of a tensor its sizes, not its numbers.
SIZE_METHODS = {"size", "dim", "ndimension", "numel", "is_floating_point", "is_complex", "stride"}
SIZE_NAMES = {"shape", "ndim", "dtype", "device", "is_cuda", "layout"}


class SizedProxy(fx.Proxy):
    """A value while tracing that is a number where its sizes say which."""

    def __getattr__(self, k: str) -> "SizedAttribute":
        return SizedAttribute(self, k)

    def __index__(self) -> int:
        return int(self.tracer.known(self))  # type: ignore[attr-defined]

    def __int__(self) -> int:
        return int(self.tracer.known(self))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return int(self.tracer.length(self))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.known(self))  # type: ignore[attr-defined]


class SizedAttribute(fx.proxy.Attribute, SizedProxy):
    """Such as the shape of a value; a method of it, if it is called."""


class SizedTracer(fx.Tracer):
    """Traces with the values of two and of three inputs at hand.

    Args:
        opened: names of the modules whose inside is traced; all others are one step.
        trials: the arguments of forward by name, for two inputs and for three.

    Attributes:
        values: of every node, on both trials.
        sized: whether a size of the example was built in.
        failed: the module in which tracing failed.
    """

    def __init__(self, opened: Collection[str], trials: list[dict[str, Any]]) -> None:
        super().__init__()
        self.opened, self.trials = set(opened), trials
        self.values: dict[fx.Node, tuple[Any, Any]] = {}
        self.sized = False
        self.failed: str | None = None
        self._trying = False  # a step runs on its trials, not to be traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """All but the opened ones."""
        return module_qualified_name not in self.opened

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """As usual, noting where it failed."""
        if self._trying:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As usual; parameters are themselves to a step that is tried."""
        if self._trying:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """With values."""
        if node.op != "output":
            self._trying = True
            self.values[node] = (self._value(node, 0), self._value(node, 1))
            self._trying = False
        return SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A branch: taken where a size decides it."""
        return bool(self.known(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Over the dimensions of a size, or the parts of a tuple."""
        value = self.values[obj.node][0]
        if isinstance(value, tuple | list):
            whole: Any = obj
            return iter([whole[at] for at in range(len(value))])
        return super().iter(obj)

    def length(self, obj: fx.Proxy) -> int:
        """How long a size, a tuple or a tensor is that is not as long as there are inputs."""
        two, three = (len(value) for value in self.values[obj.node])
        if two != three:
            raise fx.proxy.TraceError("it hangs on how many inputs there are")
        self.sized = self.sized or isinstance(self.values[obj.node][0], Tensor)
        return two

    def known(self, obj: fx.Proxy) -> Any:
        """The value of a proxy that follows from sizes other than the number of inputs."""
        two, three = self.values[obj.node]
        if isinstance(two, Tensor) or not self._from_sizes(obj.node):
            raise fx.proxy.TraceError("it hangs on the numbers in the input")
        if two != three or self._from_rows(obj.node):
            raise fx.proxy.TraceError("it hangs on how many inputs there are")
        self.sized = True
        return two

    def _from_sizes(self, node: fx.Node) -> bool:
        """Whether a value that is no tensor follows from sizes, not from the numbers in tensors."""
        if node.op == "call_method":
            return node.target in SIZE_METHODS
        if node.target is getattr and node.args[1] in SIZE_NAMES:
            return True
        before = node.all_input_nodes
        return bool(before) and all(self._from_sizes(other) for other in before)

    def _from_rows(self, node: fx.Node) -> bool:
        """Whether a size follows from the number of inputs."""
        before = node.all_input_nodes
        here = [self.values[other] for other in before]
        if node.op == "call_method" or node.target is getattr:
            return False  # of a tensor: a whole shape, of which the part counts that is read
        differ = any(not isinstance(two, tuple | Tensor) and two != three for two, three in here)
        return differ or any(self._from_rows(other) for other in before)

    def _value(self, node: fx.Node, trial: int) -> Any:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            return self.trials[trial].get(str(node.target), default)
        if node.op == "get_attr":
            return attribute(self.root, str(node.target))
        found: Any = (node.args, node.kwargs)
        args, options = map_aggregate(found, lambda leaf: self._look_up(leaf, trial))
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **options)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **options)
        target: Any = node.target
        return target(*args, **options)

    def _look_up(self, leaf: Any, trial: int) -> Any:
        return self.values[leaf][trial] if isinstance(leaf, fx.Node) else leaf


def attribute(module: Any, path: str) -> Any:
    """What lies at a dotted path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def traced(
    model: nn.Module, opened: Collection[str], trials: list[dict[str, Any]], training: bool
) -> SizedTracer:
    """The steps of forward in one mode; `.graph` has them.

    Only flags of opened modules are switched to training meanwhile: no statistics move.

    Raises:
        InputError: which steps run hangs on the input; says where.
    """
    tracer = SizedTracer(opened, trials)
    with _modes(model, opened if training else ()), torch.no_grad():
        try:
            tracer.graph = tracer.trace(model)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_where(model, tracer.failed, error)) from error
    return tracer


@contextmanager
def _modes(model: nn.Module, training: Collection[str]) -> Iterator[None]:
    """All in evaluation mode but some, and the model itself if there are some."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if training:
            model.training = True
        for name in training:
            model.get_submodule(name).training = True
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _where(model: nn.Module, failed: str | None, error: Exception) -> str:
    """Rule, place and way out, in one line."""
    inside = ("torch/", "pointsman/depth/trunks/", "pointsman\\depth\\trunks\\", "torch\\")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in inside) and frame.filename[0] != "<"
    ]
    kind = type(model).__name__
    module = f"its module {failed!r}" if failed else "its own forward"
    place = ""
    if frames:
        name = frames[-1].filename.replace("\\", "/").rsplit("/", 1)[-1]
        place = f", {name} line {frames[-1].lineno}: {frames[-1].line}"
    return (
        f"{kind} cannot be cut, because what {module} runs is not the same for every input"
        f"{place} ({reason(error)}): cut at a module that does not hold this line, or give the "
        "parts as a list"
    )
