"""A model's own forward with its layers stood in for, without touching the model.

    calls      run forward without its layers; note what it would hand to each of them; stop
    finished   run forward again, with a given hidden state as what the last layer gave

Both run on a shell: the modules on the way from the model to its list of layers are copied (their
parameters and children are not), and the list is replaced by stand-ins. The model itself is never
changed, so threads and gradients do not meet.

Legend: B calls of layers in the order in which they are made, n inputs.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from pointsman.depth.trunks.rows import share, shared
from pointsman.errors import InputError

# What a layer is called with: positional and named arguments.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Enough(Exception):  # noqa: N818
    """What was to be learned is known: the rest of forward need not run."""


class _Answer(Protocol):
    def __call__(self, member: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any: ...


class StandIn:
    """In place of one layer: the layer in every respect but being called."""

    def __init__(self, layer: nn.Module, member: int, answer: _Answer) -> None:
        self._layer, self._member, self._answer = layer, member, answer

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the shell says."""
        return self._answer(self._member, args, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


class Shell:
    """Runs a model's forward with stand-ins.

    Args:
        model: never changed.
        layers: dotted name of its list of layers.
        order: for each of the B calls, which member of the list it is.
        lengths: for each call, how many things that layer returns in a tuple; 0: a bare tensor.
    """

    def __init__(
        self, model: nn.Module, layers: str, order: Sequence[int], lengths: Sequence[int]
    ) -> None:
        self.model, self.layers = model, layers
        self.order, self.lengths = tuple(order), tuple(lengths)

    @classmethod
    def watching(cls, model: nn.Module, layers: str, arguments: Mapping[str, Any]) -> Self:
        """Learn order and lengths from one whole run."""
        members: Any = model.get_submodule(layers)
        order, lengths = [], []

        def answer(member: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            output = members[member](*args, **options)
            order.append(member)
            lengths.append(0 if isinstance(output, Tensor) else len(output))
            return output

        found = cls(model, layers, (), ())
        found._run(answer, arguments)
        if not order:  # such as an encoder's, when only the decoder was run
            raise InputError(f"{type(model).__name__} runs none of its layers {layers}")
        return cls(model, layers, order, lengths)

    def calls(self, arguments: Mapping[str, Any]) -> list[Call]:
        """What each of the B calls would be made with; the hidden states are those of the first.

        Raises:
            InputError: forward makes other calls, as where layers are left out in training.
        """
        found: list[Call] = []

        def note(member: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if member != self.order[len(found)]:
                raise self._other_calls()
            found.append((args, options))
            if len(found) == len(self.order):
                raise _Enough
            return self._returned(len(found) - 1, hidden_of(args, options))

        try:
            self._run(note, arguments)
        except _Enough:
            return found
        raise self._other_calls()

    def finished(self, hidden: Tensor, arguments: Mapping[str, Any]) -> Any:
        """What forward returns when the last layer gives this hidden state."""
        count = 0

        def answer(member: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            nonlocal count
            count += 1
            last = count == len(self.order)
            return self._returned(count - 1, hidden if last else hidden_of(args, options))

        return self._run(answer, arguments)

    def _other_calls(self) -> InputError:
        return InputError(
            f"{type(self.model).__name__} does not run its {len(self.order)} layers in the order "
            "in which it ran them first: set its layerdrop to 0"
        )

    def _returned(self, call: int, hidden: Tensor) -> Any:
        length = self.lengths[call]
        return (hidden, *[None] * (length - 1)) if length else hidden

    def _run(self, answer: _Answer, arguments: Mapping[str, Any]) -> Any:
        members: Any = self.model.get_submodule(self.layers)
        stand_ins = [StandIn(layer, at, answer) for at, layer in enumerate(members)]
        return _replaced(self.model, self.layers.split("."), stand_ins)(**arguments)


class Layout:
    """What layers are handed beside the hidden state, and how it is kept in rows.

    Args:
        few: the calls for two inputs.
        more: the calls for three inputs: what grew has rows, the rest is shared by all.
    """

    def __init__(self, few: Sequence[Call], more: Sequence[Call]) -> None:
        self._parts = [_Part(call) for call in more]
        self._rows: dict[tuple[int, int], int] = {}  # rows of one input; 0: shared
        sizes = [{key: x.shape[0] for key, x in _beside(calls) if x.ndim} for calls in (few, more)]
        for key in sizes[0].keys() & sizes[1].keys():
            each = sizes[0][key] // 2
            grew = each > 0 and (sizes[0][key], sizes[1][key]) == (2 * each, 3 * each)
            self._rows[key] = each if grew else 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # never changes

    def pack(self, calls: Sequence[Call], n: int) -> dict[str, Tensor]:
        """Every tensor once, with one row per input, named after its places in the calls.

        A name says how many rows of the tensor belong to one input (0: shared), and of which calls
        it is which leaf: "1 0.2 1.2".

        Raises:
            InputError: other constants than in the calls that the layout was made from.
        """
        for part, call in zip(self._parts, calls, strict=True):
            part.refuse_other(call)
        uses: dict[int, tuple[Tensor, list[tuple[int, int]]]] = {}
        for key, x in _beside(calls):
            uses.setdefault(id(x), (x, []))[1].append(key)
        packed = {}
        for x, keys in uses.values():
            each = self._rows.get(keys[0], int(x.ndim > 0 and x.shape[0] == n))
            name = f"{each} " + " ".join(f"{call}.{leaf}" for call, leaf in keys)
            if each > 1:
                packed[name] = x.reshape(n, each, *x.shape[1:])
            else:
                packed[name] = x if each else share(x, n)
        return packed

    def unpack(self, at: int, hidden: Tensor, packed: Mapping[str, Tensor]) -> Call:
        """The arguments of one call."""
        part = self._parts[at]
        leaves = list(part.leaves)
        leaves[part.hidden] = hidden
        for name, rows in packed.items():
            each, places = _places(name)
            for leaf in places.get(at, ()):
                if each > 1:
                    leaves[leaf] = rows.flatten(0, 1)
                else:
                    leaves[leaf] = rows if each else shared(rows)
        args, options = tree_unflatten(leaves, part.spec)
        return args, options


class _Part:
    """One call: its structure, its constants, and which leaf the hidden state is."""

    def __init__(self, call: Call) -> None:
        leaves, self.spec = _flat(call)
        hidden = hidden_of(*call)
        self.hidden = next(at for at, leaf in enumerate(leaves) if leaf is hidden)
        self.leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def refuse_other(self, call: Call) -> None:
        leaves, spec = _flat(call)
        pairs = zip(leaves, self.leaves, strict=False)
        same = all(isinstance(leaf, Tensor) or leaf is was or leaf == was for leaf, was in pairs)
        if spec != self.spec or not same:
            raise InputError(
                "the layers are handed other constants than on the example, so other blocks would "
                "run: give inputs of the sizes and kinds of the example"
            )


def hidden_of(args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """The hidden state that a layer is called with.

    Raises:
        InputError: it is neither the first argument nor called hidden_states.
    """
    hidden = args[0] if args else options.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise InputError(
            "a layer takes the hidden state as its first argument or as hidden_states, got "
            f"{type(hidden).__name__}"
        )
    return hidden


def _flat(call: Call) -> tuple[list[Any], TreeSpec]:
    return tree_flatten(call)


def _beside(calls: Sequence[Call]) -> list[tuple[tuple[int, int], Tensor]]:
    """Every tensor that is not the hidden state, by call and leaf."""
    found = []
    for at, call in enumerate(calls):
        hidden = hidden_of(*call)
        for leaf, x in enumerate(_flat(call)[0]):
            if isinstance(x, Tensor) and x is not hidden:
                found.append(((at, leaf), x))
    return found


@lru_cache(maxsize=1024)
def _places(name: str) -> tuple[int, dict[int, tuple[int, ...]]]:
    """Rows of one input, and by call the leaves that a packed tensor is."""
    each, *uses = name.split()
    places: dict[int, tuple[int, ...]] = {}
    for use in uses:
        call, leaf = use.split(".")
        places[int(call)] = (*places.get(int(call), ()), int(leaf))
    return int(each), places


def _replaced(module: nn.Module, path: list[str], value: Any) -> nn.Module:
    """A copy of a module in which what lies at a path is another; all the rest is the very same."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(module.__dict__)
    children = dict(module._modules)
    twin.__dict__["_modules"] = children
    if len(path) == 1:
        del children[path[0]]
        twin.__dict__[path[0]] = value  # a plain list, found before torch looks for children
        return twin
    child = children[path[0]]
    assert child is not None
    children[path[0]] = _replaced(child, path[1:], value)
    return twin
