"""Models of transformers with routed layers in place: adopt sparse blocks, wrap dense ones.

Legend: T tokens, D width.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointsman.errors import DegenerateWarning, InputError
from pointsman.moe.convert.dense import feed_forward_experts
from pointsman.moe.convert.huggingface import from_block, is_sparse_block
from pointsman.moe.convert.reading import (
    Dense,
    UnreadableError,
    as_linear,
    as_module,
    last_dropout,
    match_dense,
)
from pointsman.moe.layer import MoE, Routing

Where = Callable[[str, nn.Module], bool]

# Names in a state dict: beginnings of ours, and of transformers'.
NAMES = {
    "moe.router.gate.": "gate.",
    "moe.experts.up_EFD": "experts.gate_up_proj",
    "moe.experts.down_EDF": "experts.down_proj",
    "moe.shared.expert.": "shared_expert.",
    "moe.shared.gate.": "shared_expert_gate.",
}


class RoutedBlock(nn.Module):
    """A routed layer where a model expects a module that gives a tensor.

    The routing of each call is for those who listen, see `collected`, and padding is told by
    `padded`, as models of transformers do not hand their mask to feed-forwards. An adopted block
    reads and writes state dicts under the names of the block it stands for.

    Args:
        moe: the layer.
        after: what the replaced module did last, such as dropout.
        block: the sparse block that this one stands for, whose parameters the layer holds.
    """

    def __init__(
        self, moe: MoE, *, after: nn.Module | None = None, block: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.moe, self.after = moe, after
        self.mask: Tensor | None = None  # see `padded`
        # A tuple, so that it is no submodule.
        self.stands_for: tuple[nn.Module, ...] = () if block is None else (block,)
        if block is not None:
            self.register_state_dict_post_hook(_to_their_names)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_to_our_names)  # type: ignore[no-untyped-call]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Features (..., D) to (..., D)."""
        output: Tensor = self.moe(hidden_states, mask=self.mask)[0]
        return output if self.after is None else self.after(output)


@dataclass
class Collected:
    """Routings of the calls made inside `collected`.

    Attributes:
        routings: by name of the layer, in the order of the calls.
        detached: whether a layer in training was called with gradients switched off.
    """

    routings: dict[str, list[Routing]] = field(default_factory=dict)
    detached: bool = False

    @property
    def loss(self) -> Tensor:
        """Scalar: the weighted balancing terms of all calls together.

        Warns: `DegenerateWarning` where it has no gradient although the layers train, as under
        reentrant checkpointing, whose first pass keeps none.
        """
        if self.detached and torch.is_grad_enabled():
            warnings.warn(
                "balancing terms have no gradient: the layers were called without, as reentrant "
                "checkpointing does. Use gradient_checkpointing_kwargs={'use_reentrant': False}",
                DegenerateWarning,
                stacklevel=2,
            )
        losses = [routing.loss for calls in self.routings.values() for routing in calls]
        return torch.stack(losses).sum() if losses else torch.zeros(())


def adopt(model: nn.Module, *, where: Where | None = None) -> list[str]:
    """Replace sparse blocks of a transformers model by routed layers on the same parameters.

    Outputs, generation, state dicts and `save_pretrained` stay what they were; `release` undoes it.

    Args:
        model: changed in place.
        where: (name, block) → whether to replace it; None means every sparse block.

    Returns:
        Names of what was replaced.

    Raises:
        InputError: there is no such block, or one computes something else, see `from_block`.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name and is_sparse_block(module) and (where is None or where(name, module))
    ]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no sparse block to adopt"
            + (" where asked" if where else "")
            + ": `wrap` turns dense feed-forwards into routed ones"
        )
    # All are read before the first is replaced: an error leaves the model as it was.
    blocks = [RoutedBlock(from_block(block), block=block) for _, block in found]
    for (name, block), routed in zip(found, blocks, strict=True):
        model.set_submodule(name, routed.train(block.training))
    return [name for name, _ in found]


def release(model: nn.Module) -> list[str]:
    """Put the sparse blocks back that `adopt` replaced, with the weights as they now are.

    Args:
        model: changed in place.

    Returns:
        Names of what was put back.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, RoutedBlock) and module.stands_for
    ]
    for name, routed in found:
        block: Any = routed.stands_for[0]
        experts = feed_forward_experts(routed.moe)
        block.experts.gate_up_proj, block.experts.down_proj = experts.up_EFD, experts.down_EDF
        model.set_submodule(name, block.train(routed.training))
    return [name for name, _ in found]


def wrap(
    model: nn.Module, make: Callable[[Dense], MoE], *, where: Where | None = None
) -> list[str]:
    """Replace the dense feed-forwards of a model by routed layers.

    Found are modules that `read_dense` reads and that keep the width, and the pair of intermediate
    and output modules of BERT and its kin. With `copy` or `split` the model computes what it did;
    a dropout at the end is kept. Nothing inside a routed layer or sparse block is touched.

    Args:
        model: changed in place, of transformers or any other.
        make: feed-forward → routed layer, such as `partial(copy, num_experts=4)`.
        where: (name, module) → whether to replace it; None means every one.

    Returns:
        Names of what was replaced.

    Raises:
        InputError: nothing was found, or a feed-forward drops hidden units in training.
    """
    found = list(_feed_forwards(model, where))
    if not found:
        raise InputError(
            f"{type(model).__name__} has no dense feed-forward to replace"
            + (" where asked" if where else "")
            + ": those are modules around two linear layers, or three if gated"
        )
    # All are made before the first is replaced: an error leaves the model as it was.
    dropped = [last_dropout(place.whole, place.dense) for place in found]
    layers = [make(place.dense) for place in found]
    for place, moe, share in zip(found, layers, dropped, strict=True):
        routed = RoutedBlock(moe, after=nn.Dropout(share) if share > 0 else None)
        model.set_submodule(place.name, routed.train(place.module.training))
        if place.rest is not None:
            place.rest.dense = nn.Identity()
    return [place.name for place in found]


def routed_layers(model: nn.Module) -> dict[str, MoE]:
    """Every routed layer of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


@contextmanager
def collected(model: nn.Module) -> Iterator[Collected]:
    """Collect what the routed layers of a model decide meanwhile.

    It is for losses: `moe.watch` adds up statistics instead, and keeps no graph. A forward pass
    that activation checkpointing repeats during the backward pass is not counted again.

    Args:
        model: with routed layers at any depth.

    Raises:
        InputError: it has none.
    """
    layers = routed_layers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no routed layer: `adopt` or `wrap` it first")
    found = Collected({name: [] for name in layers})

    def listen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, _: Any, output: tuple[Tensor, Routing]) -> None:
            if torch._C._current_graph_task_id() != -1:  # repeated by the backward pass
                return
            found.routings[name].append(output[1])
            found.detached |= (
                bool(output[1].losses) and layer.training and not torch.is_grad_enabled()
            )

        return hook

    handles = [layer.register_forward_hook(listen(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def padded(model: nn.Module, attention_mask: Tensor) -> Iterator[None]:
    """Meanwhile, the adopted and wrapped blocks of a model leave padding out.

    It takes no expert, no capacity and no part in a loss or a count; real tokens come out as
    before. Under activation checkpointing, let the backward pass run inside too.

    Args:
        model: called with inputs of the mask's shape, thus not for generation with a cache.
        attention_mask: (n, S), nonzero where there is a token, as given to the model.

    Raises:
        InputError: the model has no such block.
    """
    blocks = [module for module in model.modules() if isinstance(module, RoutedBlock)]
    if not blocks:
        raise InputError(f"{type(model).__name__} has no routed block: `adopt` or `wrap` it first")
    try:
        for block in blocks:
            block.mask = attention_mask.bool()
        yield
    finally:
        for block in blocks:
            block.mask = None


class _Place(NamedTuple):
    """A feed-forward in a model.

    Fields: `module` is what is replaced; `whole` computes it all; `rest` holds the way down where
    that is in another module.
    """

    name: str
    module: nn.Module
    whole: nn.Module
    dense: Dense
    rest: nn.Module | None


def _feed_forwards(model: nn.Module, where: Where | None) -> Iterator[_Place]:
    """Every dense feed-forward that keeps the width."""
    closed: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(beginning) for beginning in closed):
            continue
        if isinstance(module, MoE) or hasattr(module, "experts"):
            closed.append(f"{name}." if name else "")
            continue
        place = _place(name, module)
        if place is not None and (where is None or where(place.name, place.module)):
            yield place


def _place(name: str, module: nn.Module) -> _Place | None:
    linears = sum(as_linear(child) is not None for child in module.children())
    first, rest = (getattr(module, part, None) for part in ("intermediate", "output"))
    whole, tail = module, None
    try:
        if isinstance(first, nn.Module) and isinstance(rest, nn.Module):
            whole, tail = _joined(first, rest), rest
            name, module = f"{name}.intermediate" if name else "intermediate", first
        elif not name or linears not in (2, 3):
            return None
        dense = match_dense(whole)
    except UnreadableError:
        return None
    return _Place(name, module, whole, dense, tail) if dense.down.shape[0] == dense.width else None


def _joined(first: Any, rest: Any) -> nn.Module:
    """BERT's way up and its way down as one module; what follows stays in the model.

    Raises:
        UnreadableError: they are built otherwise.
    """
    activations = [value for name, value in _members(first).items() if "act" in name]
    if len(activations) != 1 or not hasattr(first, "dense") or not hasattr(rest, "dense"):
        raise UnreadableError(f"{type(first).__name__} has no way up, or no single activation")
    return nn.Sequential(first.dense, as_module(activations[0]), rest.dense)


def _members(module: nn.Module) -> Mapping[str, Any]:
    own = {name: value for name, value in vars(module).items() if callable(value)}
    return {**own, **dict(module.named_children())}


def _to_their_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    _rename(state, prefix, NAMES)


def _to_our_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, {theirs: ours for ours, theirs in NAMES.items()})


def _rename(state: dict[str, Any], prefix: str, names: Mapping[str, str]) -> None:
    for old in [name for name in state if name.startswith(prefix)]:
        for start, instead in names.items():
            rest = old.removeprefix(prefix)
            if rest.startswith(start):
                state[prefix + instead + rest.removeprefix(start)] = state.pop(old)
                break
