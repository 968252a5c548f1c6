"""Models of Hugging Face's `transformers` as rows of layers.

`layers_of(model)` finds the layers of any of them: `(dotted name, nn.ModuleList)`.
`TransformerTrunk` runs them one by one. Nothing is imported from `transformers` here: what is read
off a model is its modules, and what its forward does around its layers is done by its own forward
(see `shell`), so that masks, positions, norms and heads are those of the model, whichever it is.

Legend: n inputs, S tokens, D width, B layers, C classes.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pointsman.depth.trunks.rows import blank_row, count_rows, several_rows, take_rows
from pointsman.depth.trunks.shell import Layout, Shell, hidden_of
from pointsman.depth.trunks.walking import check_walk
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import State

Reads = Literal["first", "last", "mean", "all"]

# A list of layers whose weights are fewer than this share of the largest list's is beside the way:
# the vision tower of a language model, a projector.
RIVAL_SHARE = 0.25
PIXELS = 4  # dimensions of a batch of images


class TransformerTrunk(nn.Module):
    """A model of `transformers` as a row of its layers, with or without a task's head.

    A state holds the hidden states, the model's inputs apart from images (a head may look for the
    last token that is no padding), and what the layers are handed besides: masks and positions,
    with one row per input even where all share them. Rows that leave take theirs along.

    Layers run without a cache: for decoding see `pointsman.depth.decoding`.

    Args:
        model: shared, not copied. Its layers hand each other the hidden state alone.
        example: a batch of at least one input: token ids or pixels, or a dict of the model's
            arguments, all with one row per input.
        reads: what heads and routers read off the hidden states (n, S, D): the "first" token, the
            "last" one that is no padding, the "mean" over tokens that are no padding, or "all".
            None: as the model's own head does; "all" where that answers at each token.

    Attributes:
        names: of the B layers; a layer that runs several times comes with "#1", "#2", ...
        order: which member of the list of layers each block is.
        channels: the dimension of features that holds the width.

    Raises:
        InputError: no list of layers, or layers that cannot be run one by one, such as those that
            hand each other more than the hidden state.
    """

    def __init__(self, model: nn.Module, example: Any, *, reads: Reads | None = None) -> None:
        super().__init__()
        self.model = model
        self.list_name = layers_of(model)[0]
        trial = several_rows(example, 3)
        arguments = self._arguments(trial)
        self._sizes = {name: tuple(x.shape[1:]) for name, x in arguments.items() if _pixels(x)}
        with evaluating(model), torch.no_grad():
            shell = Shell.watching(model, self.list_name, arguments)
            self.order, self._lengths = shell.order, shell.lengths
            self.names = _names(self.list_name, self.order)
            fewer = self._arguments(take_rows(trial, slice(0, 2)))
            self._layout = Layout(shell.calls(fewer), shell.calls(arguments))
        check_walk(self, trial)
        self.reads: Reads = reads or self._as_the_head_does(trial)

    @property
    def channels(self) -> int:
        """The dimension of features that holds the width: the last where all tokens are read."""
        return -1 if self.reads == "all" else 1

    def forward(self, x: Any) -> Tensor:
        """The model itself: its logits, or its last hidden states where it has no head."""
        return _logits(self.model(**self._arguments(x)))

    def begin(self, x: Any) -> State:
        """Ids (n, S), pixels (n, ...) or a dict of arguments to the state before the first layer.

        Raises:
            InputError: the layers are handed other constants than on the example.
        """
        n = count_rows(x)
        if not n:
            return take_rows(self.begin(blank_row(x)), slice(0, 0))
        arguments = self._arguments(x)
        calls = self._shell().calls(arguments)
        named = {
            name: part
            for name, part in arguments.items()
            if isinstance(part, Tensor) and not _pixels(part)
        }
        beside = self._layout.pack(calls, n)
        return {"hidden": hidden_of(*calls[0]), "inputs": named, "beside": beside}

    def block(self, at: int, state: State) -> State:
        """One layer."""
        if not count_rows(state):
            return take_rows(self.block(at, blank_row(state)), slice(0, 0))
        layers: Any = self.model.get_submodule(self.list_name)
        args, options = self._layout.unpack(at, state["hidden"], state["beside"])
        output = layers[self.order[at]](*args, **options)
        return {**state, "hidden": output if isinstance(output, Tensor) else output[0]}

    def features(self, state: State) -> Tensor:
        """(n, D); or (n, S, D) where all tokens are read; or maps (n, D, ...) as they are."""
        hidden: Tensor = state["hidden"]
        if self.reads == "all" or hidden.ndim != 3:
            return hidden
        if self.reads == "first":
            return hidden[:, 0]
        kept = self._kept(state)
        if self.reads == "last":
            places = torch.arange(kept.shape[1], device=kept.device)
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            return hidden[rows, (places * kept).argmax(dim=1)]
        weights = kept.to(hidden.dtype)[:, :, None]
        mean: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return mean

    def finish(self, state: State) -> Tensor:
        """The hidden states through everything that the model does after its layers."""
        if not count_rows(state):
            return self.finish(blank_row(state))[:0]
        hidden: Tensor = state["hidden"]
        # Nothing looks at images after the layers: none is embedded again.
        images = {name: hidden.new_zeros(0, *size) for name, size in self._sizes.items()}
        arguments = self._arguments({**state["inputs"], **images})
        return _logits(self._shell().finished(hidden, arguments))

    def _shell(self) -> Shell:
        return Shell(self.model, self.list_name, self.order, self._lengths)

    def _arguments(self, x: Any) -> dict[str, Any]:
        """All arguments of the model's forward, by name."""
        parameters = inspect.signature(self.model.forward).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        caches = hasattr(getattr(self.model, "config", None), "use_cache")
        fixed: dict[str, Any] = {}
        if "use_cache" in parameters or (caches and open_ended):
            fixed["use_cache"] = False
        if "return_dict" in parameters:
            fixed["return_dict"] = True
        named = getattr(self.model, "main_input_name", None) or next(iter(parameters))
        if isinstance(x, Tensor):
            return {named: x, **fixed}
        if not isinstance(x, Mapping):
            raise InputError(
                f"{type(self.model).__name__} takes a tensor ({named}) or a dict of its arguments, "
                f"got {type(x).__name__}"
            )
        return {**x, **fixed}

    def _kept(self, state: State) -> Tensor:
        """(n, S) bool: tokens that are no padding."""
        inputs, hidden = state["inputs"], state["hidden"]
        mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
        pad = getattr(getattr(self.model, "config", None), "pad_token_id", None)
        if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2]:
            return mask.bool()
        if isinstance(ids, Tensor) and ids.shape == hidden.shape[:2] and pad is not None:
            return ids.ne(pad)
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)

    def _as_the_head_does(self, x: Any) -> Reads:
        """Which tokens the model's own head looks at: those that its logits have a gradient in."""
        with evaluating(self), torch.no_grad():
            state = self.begin(x)
            for at in range(len(self.names)):
                state = self.block(at, state)
            hidden = state["hidden"].detach().requires_grad_()
            with torch.enable_grad():
                logits = self.finish({**state, "hidden": hidden})
                if logits.ndim > 2:
                    return "all"
                (slope,) = torch.autograd.grad(logits.sum(), hidden)
        if hidden.ndim != 3:
            return "mean"
        seen = slope.abs().sum(dim=2) > 0
        if not bool(seen[:, 2:].any()) and bool(seen[:, 0].all()):  # a second one: distillation
            return "first"
        return "last" if bool((seen.sum(dim=1) == 1).all()) else "mean"


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The layers of a model: the outermost `nn.ModuleList` that holds the most weights.

    Args:
        model: of `transformers`, or any other that keeps its layers in a list: encoder, decoder or
            vision model, with or without a task's head.

    Returns:
        The dotted name of the list inside the model, such as "model.layers", and the list itself,
        whose members run in order.

    Raises:
        InputError: no list of layers, or several of about the same size, as in a model that has an
            encoder and a decoder.
    """
    lists = dict(_outermost_lists(model, ""))
    weights = {name: sum(p.numel() for p in found.parameters()) for name, found in lists.items()}
    if not any(weights.values()):
        raise InputError(
            f"{type(model).__name__} keeps no layers in an nn.ModuleList: give the parts of it as "
            "a list, or let it be traced"
        )
    name = max(weights, key=weights.__getitem__)
    rivals = [other for other in weights if weights[other] >= RIVAL_SHARE * weights[name]]
    if len(rivals) > 1:
        raise InputError(
            f"{type(model).__name__} has several lists of layers, {', '.join(rivals)}: give the "
            "part of the model that holds the one to walk, such as model.encoder"
        )
    return name, lists[name]


def _outermost_lists(module: nn.Module, name: str) -> list[tuple[str, nn.ModuleList]]:
    """Lists that lie in no other, by dotted name."""
    if isinstance(module, nn.ModuleList):
        return [(name, module)]
    found = []
    for child_name, child in module.named_children():
        found += _outermost_lists(child, f"{name}.{child_name}" if name else child_name)
    return found


def _pixels(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.ndim >= PIXELS


def _logits(output: Any) -> Tensor:
    """The main output of a model: its logits, else its last hidden states."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    found = output[0]
    if not isinstance(found, Tensor):
        raise InputError(f"a model gives logits or hidden states, got {type(output).__name__}")
    return found


def _names(list_name: str, order: tuple[int, ...]) -> tuple[str, ...]:
    """Dotted names of the layers in the order of their calls."""
    names = []
    for call, member in enumerate(order):
        turn = f"#{order[: call + 1].count(member)}" if order.count(member) > 1 else ""
        names.append(f"{list_name}.{member}{turn}")
    return tuple(names)
