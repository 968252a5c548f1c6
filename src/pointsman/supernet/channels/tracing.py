"""Running a network once while every operation is written down.

Torch hands over each basic operation (ATen) that any module, function or view breaks down into, so
own modules, residual sums and attention need no rule of their own. The example decides which
branches run. A branch on numbers that the network computed, which another input might take another
way, is refused.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pointsman.cost import plain_attention
from pointsman.errors import InputError, reason
from pointsman.modules import evaluating
from pointsman.supernet.channels.ledger import Call, Ledger, tensors_in
from pointsman.supernet.channels.operations import RULES, aten, identity, pointwise, unknown
from pointsman.supernet.channels.rearranging import MOVING

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent

# The length or the way through of what comes after these hangs on numbers, not on sizes.
DECIDING = {
    *(aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.nonzero_static, aten.bincount),
}

PLACES = ("idx", "index")  # names of numbers that say which one, not how many


def call_with(model: Callable[..., Any], example: Any) -> Any:
    """The output for an example: a tensor, positional arguments, or arguments by name."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation to its rule."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        taken = list(tensors_in((args, kwargs)))
        moved = any(self.ledger.is_moved(x) for x in taken)
        kind = func.overloadpacket
        if moved and kind in DECIDING:
            raise _BranchError(self.ledger.module)
        out = func(*args, **kwargs)
        call = Call(func, args, kwargs, out)
        _rule(func, kind, bool(taken))(self.ledger, call)
        if moved:
            for x in tensors_in(out):
                self.ledger.move(x)
        return out


class _BranchError(Exception):
    """The way through hangs on numbers."""


def _rule(func: Any, kind: Any, takes: bool) -> Callable[[Ledger, Call], None]:
    if not takes:
        return _made
    if kind in RULES:
        return RULES[kind]
    if kind in MOVING:
        return MOVING[kind]
    if str(kind).endswith("_"):  # the same in place, if it is known
        plain = getattr(aten, str(kind).removeprefix("aten.")[:-1], None)
        if plain in RULES and RULES[plain] in (pointwise, identity):
            return pointwise
    return pointwise if torch.Tag.pointwise in func.tags else unknown


def _made(ledger: Ledger, call: Call) -> None:
    for out in tensors_in(call.out):
        ledger.give(out, [], free=True)


def trace(model: nn.Module, example: Any) -> Ledger:
    """Run the network once, in evaluation mode, and give what was written down.

    Args:
        model: is left as it is.
        example: a tensor, a tuple of positional arguments, or a mapping of arguments by name.

    Raises:
        InputError: the network branches on numbers it computed, or does not run on the example.
    """
    ledger = Ledger()
    for tensor in [*model.parameters(), *model.buffers()]:
        ledger.give(tensor, _own_labels(ledger, tensor))
    for x in [*model.parameters(), *tensors_in(_plain(example))]:
        if x.is_floating_point() or x.is_complex():
            ledger.move(x)
    try:
        with (
            evaluating(model),
            torch.no_grad(),
            plain_attention(),
            _following(model, ledger),
            _Writer(ledger),
        ):
            output = call_with(model, example)
    except _BranchError as error:
        raise InputError(_branches(model, ledger.module, error)) from None
    except Exception as error:
        where = f" in its module {ledger.module!r}" if ledger.module else ""
        raise InputError(
            f"{type(model).__name__} does not run on the example{where} ({reason(error)}): give an "
            "example as forward takes it (a tensor, a tuple, or a dict of arguments by name)"
        ) from error
    for tensor in tensors_in(_plain(output)):
        ledger.fix(tensor)
    return ledger


def _own_labels(ledger: Ledger, tensor: Tensor) -> list[Tensor]:
    """Of a parameter or buffer: new ones in every dimension."""
    return [
        ledger.labels.fresh(size).reshape([-1 if at == dim else 1 for at in range(tensor.dim())])
        for dim, size in enumerate(tensor.shape)
        if size > 1
    ]


def _plain(value: Any) -> Any:
    """Mappings, such as the outputs of transformers, as dicts."""
    return dict(value) if isinstance(value, Mapping) else value


@contextmanager
def _following(model: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Keep in the ledger which module runs; after an error, the one in which it happened."""
    stack: list[tuple[str | None, frozenset[int]]] = []
    handles = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append((ledger.module, ledger.numbers))
            ledger.module, ledger.numbers = name, frozenset(lengths_of(module).values())

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        ledger.module, ledger.numbers = stack.pop()

    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lengths_of(module: nn.Module) -> dict[str, int]:
    """Attributes of a module itself that are whole numbers from 1, or shapes of one such.

    Not those that say which one it is, such as `layer_idx`, and not how many.
    """
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, tuple | list) and len(value) == 1:
            value = value[0]
        if type(value) is int and value > 0 and name[0] != "_" and not name.endswith(PLACES):
            found[name] = value
    return found


def _branches(model: nn.Module, module: str | None, error: BaseException) -> str:
    frames: Sequence[traceback.FrameSummary] = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(HERE)
        and not Path(frame.filename).is_relative_to(TORCH)
    ]
    place = ""
    if frames:
        name = frames[-1].filename.replace("\\", "/").rsplit("/", 1)[-1]
        place = f", {name} line {frames[-1].lineno}: {frames[-1].line}"
    where = f"its module {module!r}" if module else "its forward"
    return (
        f"the channels of {type(model).__name__} cannot be followed, because what {where} runs "
        f"hangs on numbers it computed{place}: give the part of the network before or after it"
    )
