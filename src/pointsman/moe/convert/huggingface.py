"""Sparse blocks of Hugging Face's transformers as routed layers, and back, bit for bit.

Read are blocks that choose by a softmax over a linear gate and hold gated experts without bias:
OLMoE, Mixtral, Qwen2-MoE with its gated shared expert, Qwen3-MoE, and those built like them. What
was read is compared with what the block answers, so that a block that does anything else is
refused.

Legend: T tokens, E experts, D width, H hidden units of one expert, K = k.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.convert.dense import feed_forward_experts
from pointsman.moe.convert.reading import (
    PROBES,
    TOLERANCE,
    GatedFeedForward,
    as_module,
    named,
    plain_function,
)
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE
from pointsman.moe.routers import LinearRouter
from pointsman.route import Route
from pointsman.select import guarantees, top_k

Layout = Literal["fused", "experts", "mixtral"]

# Names of one expert's matrices, in the order gate, up, down.
PER_EXPERT = {"experts": ("gate_proj", "up_proj", "down_proj"), "mixtral": ("w1", "w3", "w2")}


@guarantees(batch_independent=True, causal=True)
def softmax_top_k(scores: Tensor, k: int, *, renormalize: bool = True) -> Route:
    """The k best experts, weighted by a softmax over all that is computed in float32.

    It is what transformers' sparse blocks do, whatever the type of the model; `select.top_k`
    computes in the type of the scores.

    Guarantee: exactly k branches. Batch independent and causal.

    Args:
        scores: (T, E) floating point.
        k: branches of each input, 1 to E.
        renormalize: divide the chosen weights by their sum.

    Returns:
        A route whose weights have the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores, or k out of range.
    """
    route = top_k(scores, k, renormalize=renormalize, weigh=float_softmax)
    return route.weighted(route.weights.to(scores.dtype))


class GateScores(nn.Module):
    """The gate of a transformers model as a router.

    The gate itself is called, for its logits, so that what the model hooks onto it, such as
    `output_router_logits`, goes on working.

    Args:
        gate: (T, D) → (logits (T, E), ...).
    """

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to scores (T, E)."""
        scores_TE: Tensor = self.gate(x_TD)[0]
        return scores_TE


class SharedExpert(nn.Module):
    """An expert of every token, scaled by a gate of its own: sigmoid(gate(x)) * expert(x).

    Args:
        expert: (T, D) → (T, D).
        gate: (T, D) → (T, 1).

    Source: Yang et al. 2024, "Qwen2 technical report", arXiv 2407.10671.
    """

    def __init__(self, expert: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.expert, self.gate = expert, gate

    def forward(self, x_TD: Tensor) -> Tensor:
        """(T, D) to (T, D)."""
        y_TD: Tensor = self.gate(x_TD).sigmoid() * self.expert(x_TD)
        return y_TD


def is_sparse_block(module: nn.Module) -> bool:
    """Whether a module has the parts of a sparse block: a gate, and experts with fused weights."""
    experts = getattr(module, "experts", None)
    fused = (getattr(experts, name, None) for name in ("gate_up_proj", "down_proj"))
    gate = getattr(module, "gate", None)
    return all(isinstance(w, nn.Parameter) for w in fused) and hasattr(gate, "weight")


def from_block(block: nn.Module) -> MoE:
    """A sparse block of transformers as a routed layer on the very same parameters.

    Nothing is copied: an optimiser that holds the block's parameters goes on training them.

    Args:
        block: such as `OlmoeSparseMoeBlock`.

    Raises:
        InputError: the block is none, computes something else, jitters its inputs in training, or
            is spread over devices by transformers.
    """
    kind = type(block).__name__
    if not is_sparse_block(block):
        raise InputError(
            f"{kind} is no sparse block that can be read: it needs a gate with a weight, and "
            "experts with gate_up_proj and down_proj"
        )
    source: Any = block
    if getattr(source, "jitter_noise", 0) or getattr(source.experts, "_is_expert_parallel", False):
        raise InputError(
            f"{kind} jitters its inputs in training, or is spread over devices by transformers: "
            "set router_jitter_noise to 0 and load the model whole"
        )
    moe = MoE(
        GateScores(source.gate),
        partial(
            softmax_top_k,
            k=int(source.gate.top_k),
            renormalize=bool(getattr(source.gate, "norm_topk_prob", True)),
        ),
        _bank(source.experts.gate_up_proj, source.experts.down_proj, source.experts.act_fn),
        shared=_shared_of(source),
    )
    if not _answers_alike(block, moe):
        raise InputError(
            f"{kind} computes something else than a softmax over a linear gate with gated experts: "
            "it cannot be taken over"
        )
    return moe


def load_block(
    tensors: Mapping[str, Tensor],
    *,
    k: int,
    renormalize: bool,
    prefix: str = "",
    activation: str = "silu",
) -> MoE:
    """A routed layer from the tensors of one sparse block, in any layout; values stay bit for bit.

    Transformers is not needed. The names may be those of transformers 5 (`experts.gate_up_proj`),
    those of older files (`experts.0.gate_proj.weight`), or Mixtral's (`experts.0.w1.weight`).

    Args:
        tensors: by name; others than the block's are ignored.
        k: experts of each token, `num_experts_per_tok` of the model's configuration.
        renormalize: its `norm_topk_prob`; True for Mixtral.
        prefix: of the block's names, such as "model.layers.0.mlp.".
        activation: its `hidden_act`.

    Raises:
        InputError: a tensor is missing, or shapes that do not fit.
    """
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    gate_ED = _need(own, "gate.weight", prefix)
    up_EFD, down_EDH = _stacked(own, prefix, len(gate_ED))
    rows, width = up_EFD.shape[1], gate_ED.shape[1]
    if up_EFD.shape != (len(gate_ED), rows, width) or down_EDH.shape[1:] != (width, rows // 2):
        raise InputError(
            f"the block at {prefix!r} does not fit together: gate {tuple(gate_ED.shape)}, experts "
            f"up {tuple(up_EFD.shape)} and down {tuple(down_EDH.shape)}"
        )
    return MoE(
        _linear(gate_ED),
        partial(softmax_top_k, k=k, renormalize=renormalize),
        _bank(_weight(up_EFD), _weight(down_EDH), as_module(activation)),
        shared=_shared_from(own, prefix, activation),
    )


def save_block(moe: MoE, layout: Layout = "fused", *, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a routed layer under the names of a sparse block: the way back.

    Args:
        moe: from `from_block` or `load_block`, or put together like one.
        layout: "fused" (transformers 5), "experts" (older files) or "mixtral" (its own).
        prefix: put before each name.

    Returns:
        Tensors by name, without gradient, sharing memory with the layer where the layout allows.

    Raises:
        InputError: parts that a sparse block does not have.
    """
    experts = feed_forward_experts(moe)
    gate: Any = moe.router.gate if isinstance(moe.router, GateScores) else moe.router
    linear = isinstance(moe.router, GateScores | nn.Linear | LinearRouter)
    linear = linear and getattr(gate, "bias", None) is None and not getattr(gate, "normalize", 0)
    if not linear or not experts.gated or experts.up_bias_EF is not None:
        raise InputError(
            "a sparse block has a linear router and gated experts, without biases: "
            f"{type(moe.router).__name__} with {type(experts).__name__} cannot be saved as one"
        )
    found: dict[str, Tensor] = {"gate.weight": gate.weight}
    if layout == "fused":
        found |= {"experts.gate_up_proj": experts.up_EFD, "experts.down_proj": experts.down_EDF}
    else:
        for at, (up, down) in enumerate(zip(experts.up_EFD, experts.down_EDF, strict=True)):
            matrices = zip(PER_EXPERT[layout], (*up.chunk(2), down), strict=True)
            found |= {f"experts.{at}.{name}.weight": matrix for name, matrix in matrices}
    if isinstance(moe.shared, SharedExpert):
        found |= _named(moe.shared.expert, "shared_expert.", ("gate_proj", "up_proj", "down_proj"))
        found |= {"shared_expert_gate.weight": _named(moe.shared.gate, "", ("",))["weight"]}
    elif moe.shared is not None:
        raise InputError(
            f"a sparse block's shared part is a SharedExpert, got {type(moe.shared).__name__}"
        )
    return {prefix + name: tensor.detach() for name, tensor in found.items()}


def float_softmax(scores_TE: Tensor) -> Tensor:
    """Softmax over experts, computed in float32 whatever the type."""
    return scores_TE.softmax(dim=1, dtype=torch.float32)


def _bank(up_EFD: nn.Parameter, down_EDH: nn.Parameter, activation: Any) -> FeedForwardExperts:
    num_experts, width, hidden = down_EDH.shape
    activation = named(plain_function(activation))
    with torch.device("meta"):  # nothing is drawn: the parameters are given
        experts = FeedForwardExperts(
            num_experts,
            width,
            hidden,
            activation=activation,
            gated=True,
            bias=False,
        )
    experts.up_EFD, experts.down_EDF = up_EFD, down_EDH
    return experts


def _shared_of(block: Any) -> SharedExpert | None:
    expert, gate = (getattr(block, name, None) for name in ("shared_expert", "shared_expert_gate"))
    if expert is None or gate is None:
        return None
    return SharedExpert(expert, gate)


def _shared_from(own: Mapping[str, Tensor], prefix: str, activation: str) -> SharedExpert | None:
    if "shared_expert_gate.weight" not in own:
        return None
    names = [f"{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    state = {name: _need(own, f"shared_expert.{name}", prefix) for name in names}
    with torch.device("meta"):
        hidden, width = state["up_proj.weight"].shape
        expert = GatedFeedForward(width, hidden, activation)
    for name, tensor in state.items():
        layer: nn.Linear = expert.get_submodule(name.removesuffix(".weight"))  # type: ignore[assignment]
        layer.weight = _weight(tensor)
    return SharedExpert(expert, _linear(own["shared_expert_gate.weight"]))


def _stacked(own: Mapping[str, Tensor], prefix: str, num_experts: int) -> tuple[Tensor, Tensor]:
    """(E, 2 H, D) gate rows first, and (E, D, H)."""
    if "experts.gate_up_proj" in own:
        return own["experts.gate_up_proj"], _need(own, "experts.down_proj", prefix)
    names = PER_EXPERT["mixtral" if "experts.0.w1.weight" in own else "experts"]
    gate, up, down = (
        torch.stack(
            [_need(own, f"experts.{at}.{name}.weight", prefix) for at in range(num_experts)]
        )
        for name in names
    )
    return torch.cat([gate, up], dim=1), down


def _need(own: Mapping[str, Tensor], name: str, prefix: str) -> Tensor:
    if name not in own:
        held = ", ".join(sorted(own)[:4]) or "none"
        raise InputError(
            f"a sparse block at {prefix!r} needs the tensor {prefix + name}, which is missing: "
            f"tensors there are {held}"
        )
    return own[name]


def _weight(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = _weight(weight)
    return linear


def _named(module: nn.Module, prefix: str, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of these layers of a module; of the module itself where the name is empty."""
    found = {}
    for layer in layers:
        at = module.get_submodule(layer)
        weight, name = at.weight, f"{layer}.weight" if layer else "weight"
        if not isinstance(weight, Tensor) or getattr(at, "bias", None) is not None:
            raise InputError(f"a shared expert has linear layers without bias, got {at}")
        found[prefix + name] = weight
    return found


@torch.no_grad()
def _answers_alike(block: nn.Module, moe: MoE) -> bool:
    """Whether both give the same on random tokens; taken on trust where there are no values."""
    weight = feed_forward_experts(moe).up_EFD
    if weight.is_meta:
        return True
    generator = torch.Generator().manual_seed(0)
    x_nTD = torch.randn(1, PROBES, weight.shape[2], generator=generator).to(weight)
    modes = [(module, module.training) for module in block.modules()]
    try:
        block.eval()
        with _eager(block):
            theirs = block(x_nTD)
    except Exception:  # it wants something else than tokens: it is no block of this kind
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    ours, _ = moe(x_nTD)
    if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
        return False
    return bool((theirs - ours).norm() <= TOLERANCE.get(weight.dtype, 5e-2) * theirs.norm())


@contextmanager
def _eager(block: nn.Module) -> Iterator[None]:
    """Meanwhile, the readable path of transformers' experts: the fast ones refuse some types."""
    config: Any = getattr(getattr(block, "experts", None), "config", None)
    before = getattr(config, "_experts_implementation", None)
    if before is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = before
