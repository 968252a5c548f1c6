"""A dense feed-forward as plain tensors: read off any module, and checked against it.

Legend: N probes, D width, O outputs, H hidden units, F = H, or 2 H if gated: gate rows first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

Activation = Callable[[Tensor], Tensor]  # elementwise

# What experts run fast, by the name under which they know it.
FUNCTIONS: dict[str, Activation] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
PROBES = 16
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the norm; coarser types: 5e-2


class UnreadableError(InputError):
    """A module is no dense feed-forward."""


@dataclass(frozen=True, eq=False)
class Dense:
    """What a dense feed-forward computes: down(activation(up(x))), gated or not.

    Attributes:
        up: (F, D) weights on the way up.
        up_bias: (F,) or None.
        down: (O, H) weights on the way down.
        down_bias: (O,) or None.
        activation: elementwise.
        gated: activation(gate(x)) * up(x) between the two, as in SwiGLU.
        dropout: share of outputs that the module dropped in training; not part of a call here.
    """

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Activation
    gated: bool = False
    dropout: float = 0.0

    @property
    def width(self) -> int:
        """D."""
        return self.up.shape[1]

    @property
    def hidden(self) -> int:
        """H."""
        return self.down.shape[1]

    def hidden_of(self, x_ND: Tensor) -> Tensor:
        """What the hidden units answer, (N, H)."""
        hidden_NF = functional.linear(x_ND, self.up, self.up_bias)
        if not self.gated:
            return self.activation(hidden_NF)
        gate_NH, up_NH = hidden_NF.chunk(2, dim=-1)
        return self.activation(gate_NH) * up_NH

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Features (N, D) to (N, O)."""
        return functional.linear(self.hidden_of(x_ND), self.down, self.down_bias)

    def units(self, chosen: Tensor) -> Self:
        """These hidden units alone, with the bias on the way down left out."""
        rows = torch.cat([chosen, chosen + self.hidden]) if self.gated else chosen
        return type(self)(
            self.up[rows],
            None if self.up_bias is None else self.up_bias[rows],
            self.down[:, chosen],
            None,
            self.activation,
            self.gated,
        )

    def module(self) -> nn.Module:
        """A module that computes the same, with weights of its own."""
        with torch.device("meta"):
            made = _plain(self) if not self.gated else _gated(self)
        tensors = dict(zip(_names(self), _parts(self), strict=True))
        for name, tensor in tensors.items():
            layer, _, kind = name.rpartition(".")
            own = tensor.detach().clone(memory_format=torch.contiguous_format)
            made.get_submodule(layer).register_parameter(
                kind, nn.Parameter(own, tensor.requires_grad)
            )
        return made


class GatedFeedForward(nn.Module):
    """down_proj(activation(gate_proj(x)) * up_proj(x)), as in SwiGLU.

    Args:
        width: D.
        hidden: H.
        activation: "gelu", "relu", "silu", or any elementwise function.
        out: O; None means D.
        bias: on the way up.
        down_bias: on the way down.

    Source: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str | Activation = "silu",
        *,
        out: int | None = None,
        bias: bool = False,
        down_bias: bool = False,
    ) -> None:
        super().__init__()
        if min(width, hidden) < 1:
            raise InputError(
                f"a feed-forward needs a width and hidden of at least 1, got {width} and {hidden}"
            )
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width if out is None else out, bias=down_bias)
        self.activation = as_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., D) to (..., O)."""
        y: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return y


class Elementwise(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return self.function(x)


def as_module(activation: str | Activation) -> nn.Module:
    """An activation as a module.

    Raises:
        InputError: a name that is not known.
    """
    if isinstance(activation, str):
        if activation not in FUNCTIONS:
            raise InputError(
                f"an activation is one of {', '.join(FUNCTIONS)} or a function, got {activation!r}"
            )
        activation = FUNCTIONS[activation]
    if isinstance(activation, nn.Module):
        return activation
    own = {functional.gelu: nn.GELU, functional.relu: nn.ReLU, functional.silu: nn.SiLU}
    return own[activation]() if activation in own else Elementwise(activation)


def named(activation: Activation) -> str | Activation:
    """The name under which experts run a function fast; others as they are."""
    return next((name for name, f in FUNCTIONS.items() if f is activation), activation)


def plain_function(activation: Activation) -> Activation:
    """The function of torch that an activation's module computes, which experts run faster.

    A module that computes something else, or has weights, is given back as it is.
    """
    if isinstance(activation, Elementwise):
        return activation.function
    if not isinstance(activation, nn.Module) or next(activation.parameters(), None) is not None:
        return activation
    probe = torch.linspace(-8, 8, 65, device="cpu")
    for function in FUNCTIONS.values():
        if torch.equal(activation(probe), function(probe)):
            return function
    return activation


def read_dense(mlp: "nn.Module | Dense") -> Dense:
    """What a dense feed-forward computes, as tensors that share memory with its weights.

    Read are modules made of two linear layers around an activation, or of three if gated, in
    whatever order and under whatever names, fused gates and GPT-2's transposed layers included.
    What was read is compared with what the module answers to a few random inputs, so that a
    module that does anything else is refused.

    Args:
        mlp: for example `nn.Sequential(nn.Linear, nn.GELU, nn.Linear)`, `GatedFeedForward`, or the
            feed-forward of a transformer.

    Raises:
        UnreadableError: the module computes something else.
        InputError: it drops hidden units in training.
    """
    if isinstance(mlp, Dense):
        return mlp
    dense = match_dense(mlp)
    return replace(dense, dropout=last_dropout(mlp, dense))


def match_dense(mlp: nn.Module) -> Dense:
    """As `read_dense`, without a look at dropout.

    Raises:
        UnreadableError: the module computes something else.
    """
    linears = [pair for child in mlp.children() if (pair := as_linear(child)) is not None]
    for dense in _readings(linears, list(_activations(mlp))):
        if _answers_alike(mlp, dense):
            return dense
    inside = ", ".join(type(child).__name__ for child in mlp.children()) or "nothing"
    raise UnreadableError(
        f"{type(mlp).__name__} cannot be read as a dense feed-forward: it must compute "
        "down(activation(up(x))), gated or not, with its linear layers and the activation as its "
        f"children, got {inside}"
    )


def as_linear(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weight (out, in) and bias of a linear layer, None if it is none."""
    if isinstance(module, nn.Linear):
        return module.weight, module.bias
    if type(module).__name__ == "Conv1D" and isinstance(module.weight, Tensor):  # GPT-2's
        return module.weight.T, module.bias if isinstance(module.bias, Tensor) else None
    return None


def _readings(
    linears: list[tuple[Tensor, Tensor | None]],
    activations: list[Activation],
) -> Iterator[Dense]:
    """Every way in which these layers may be meant."""
    if len(linears) not in (2, 3):
        return
    for activation in activations:
        for order in permutations(linears):
            (down, down_bias), above = order[-1], order[:-1]
            hidden = down.shape[1]
            rows = [weight.shape[0] for weight, _ in above]
            if len({weight.shape[1] for weight, _ in above}) != 1 or sum(rows) % hidden:
                continue
            match rows:
                case [one] if one == hidden:
                    yield Dense(*above[0], down, down_bias, activation)
                case [both] if both == 2 * hidden:
                    yield Dense(*above[0], down, down_bias, activation, gated=True)
                    swapped = [None if t is None else t.roll(hidden, 0) for t in above[0]]
                    assert swapped[0] is not None
                    yield Dense(swapped[0], swapped[1], down, down_bias, activation, gated=True)
                case [gate, up] if gate == up == hidden:
                    weight = torch.cat([weight for weight, _ in above])
                    biases = [bias for _, bias in above if bias is not None]
                    if len(biases) != 1:
                        bias = torch.cat(biases) if biases else None
                        yield Dense(weight, bias, down, down_bias, activation, gated=True)


def _activations(mlp: nn.Module) -> Iterator[Activation]:
    seen = [child for child in mlp.children() if as_linear(child) is None]
    functions = [value for value in vars(mlp).values() if callable(value)]
    probe = torch.linspace(-2, 2, 8, device="cpu").reshape(2, 4)
    for candidate in (*seen, *functions):
        if isinstance(candidate, type | nn.Dropout):
            continue
        try:
            with torch.no_grad():
                alike = torch.allclose(candidate(probe)[:, :1], candidate(probe[:, :1]))
        except Exception:  # whatever it is, it is no activation
            continue
        if alike:
            yield plain_function(candidate)


@torch.no_grad()
def _answers_alike(mlp: nn.Module, dense: Dense) -> bool:
    weight = dense.up
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(PROBES, dense.width, generator=generator).to(weight)
    answer = _evaluated(mlp, x_ND)
    ours = dense(x_ND)
    if not isinstance(answer, Tensor) or answer.shape != ours.shape:
        return False
    gap, size = (answer - ours).norm(), answer.norm()
    return bool(gap <= TOLERANCE.get(weight.dtype, 5e-2) * size)


def _evaluated(mlp: nn.Module, x_ND: Tensor) -> object:
    """The answer in evaluation mode, one leading dimension added as transformers do."""
    modes = [(module, module.training) for module in mlp.modules()]
    try:
        mlp.eval()
        answer = mlp(x_ND.unsqueeze(0))
        return answer.squeeze(0) if isinstance(answer, Tensor) else answer
    except Exception:  # it wants something else than features: it is no feed-forward
        return None
    finally:
        for module, mode in modes:
            module.training = mode


def last_dropout(mlp: nn.Module, dense: Dense) -> float:
    """Share dropped at the end of the module.

    Raises:
        InputError: something is dropped elsewhere, which experts cannot do.
    """
    order: list[nn.Module] = []
    hooks = [
        child.register_forward_hook(lambda module, *_: order.append(module))
        for child in mlp.children()
    ]
    try:
        _evaluated(mlp, torch.zeros(1, dense.width).to(dense.up))
    finally:
        for hook in hooks:
            hook.remove()
    dropping = [m for m in order if isinstance(m, nn.Dropout) and m.p > 0]
    if not dropping:
        return 0.0
    if dropping != order[-1:]:
        raise InputError(
            f"{type(mlp).__name__} drops hidden units with p = {dropping[0].p} in training, which "
            "experts do not: set p = 0 there"
        )
    return float(dropping[0].p)


def _parts(dense: Dense) -> list[Tensor]:
    up = [dense.up] if not dense.gated else list(dense.up.chunk(2))
    if dense.up_bias is not None:
        biases = [dense.up_bias] if not dense.gated else list(dense.up_bias.chunk(2))
        up = [part for pair in zip(up, biases, strict=True) for part in pair]
    down = [dense.down] if dense.down_bias is None else [dense.down, dense.down_bias]
    return [*up, *down]


def _names(dense: Dense) -> list[str]:
    above = ["gate_proj", "up_proj"] if dense.gated else ["0"]
    below = "down_proj" if dense.gated else "2"
    kinds = ["weight"] if dense.up_bias is None else ["weight", "bias"]
    names = [f"{layer}.{kind}" for layer in above for kind in kinds]
    names.append(f"{below}.weight")
    return names if dense.down_bias is None else [*names, f"{below}.bias"]


def _plain(dense: Dense) -> nn.Module:
    outputs = dense.down.shape[0]
    return nn.Sequential(
        nn.Linear(dense.width, dense.hidden, bias=dense.up_bias is not None),
        as_module(dense.activation),
        nn.Linear(dense.hidden, outputs, bias=dense.down_bias is not None),
    )


def _gated(dense: Dense) -> nn.Module:
    return GatedFeedForward(
        dense.width,
        dense.hidden,
        dense.activation,
        out=dense.down.shape[0],
        bias=dense.up_bias is not None,
        down_bias=dense.down_bias is not None,
    )
