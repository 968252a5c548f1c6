"""From a description to a network, from a network to its stages and its loss."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.compare.networks import features, images, nested, skips, text
from pointsman.cost import count_flops
from pointsman.depth import EarlyExit
from pointsman.depth.layers.network import SkipNetwork
from pointsman.errors import PolicyError
from pointsman.moe import Routing
from pointsman.run import Stage
from pointsman.supernet.supernet import Supernet

Spec = Mapping[str, Any]

# Forms with a number that says how much of the network an input runs.
ROUTED = ("routed", "fine", "relu")
BALANCE_WEIGHT = 0.01


def build(spec: Spec) -> nn.Module:
    """The network of a description, with fresh weights.

    Raises:
        PolicyError: the description names no network that this version knows.
    """
    try:
        maker = _MAKERS[spec["kind"], spec["form"]]
        return maker(spec)
    except (KeyError, TypeError) as error:
        raise PolicyError(f"no network is known by the description {dict(spec)}") from error


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its convolutions' weights in the order in which a CPU is fast."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def example_of(spec: Spec, rows: int = 2) -> Tensor:
    """A batch of the shape that the network takes, for counting and for shapes."""
    if spec["kind"] == "features":
        return torch.zeros(rows, spec["inputs"])
    if spec["kind"] == "images":
        return torch.zeros(rows, spec["channels"], *spec["side"])
    return torch.zeros(rows, spec["context"], dtype=torch.uint8)


def stages_of(spec: Spec, module: nn.Module) -> list[tuple[str, Stage]]:
    """The answers that a network can give, from cheap to dear, each with its name."""
    if isinstance(module, EarlyExit):
        names = [f"exit {at + 1}" for at in range(len(module.exits))]
        return list(zip(names, module.stages(), strict=True))
    if isinstance(module, nested.Subnets):
        stages = [Stage(network) for network in module.networks]
        return list(zip(module.names, stages, strict=True))
    if isinstance(module, SkipNetwork):
        return skips.stages(module, example_of(spec))
    if spec["form"] in ROUTED:
        return [(_used(spec, k), Stage(partial(_routed, module, k))) for k in spec["used"]]
    return [(spec["name"], Stage(module))]


def _used(spec: Spec, k: float) -> str:
    """The name of a knob's value: a number of experts, or a share that scores must reach."""
    if spec["form"] != "relu":
        return f"{k} expert" + ("" if k == 1 else "s")
    words = {0.0: "every positive score", 1.0: "best score only"}
    return words.get(k, f"scores from {100 * k:g}% of the best")


def _routed(module: nn.Module, k: float, x: Tensor) -> Tensor:
    logits: Tensor = module(x, k=k)[0]
    return logits


def loss_of(
    spec: Spec, module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """Training loss of one batch, by the form of the network.

    Exits: the mean over all exits. Skips: blocks left out at random. Nested: one drawn subnet a
    step, the whole network more often than others. Routed: a drawn number of experts (a drawn
    share, for ReLU), plus the balancing loss.
    """
    form = spec["form"]
    if form == "exits":
        return torch.stack([_cross_entropy(logits, y) for logits in module(x)]).mean()
    if isinstance(module, Supernet):
        module.use(nested.draw(module.space, generator))
        return _cross_entropy(module(x), y)
    if form in ROUTED:
        used = spec["used"]
        logits, found = module(x, k=used[_draw(len(used), generator)])
        balance = _balance(module, found) if spec["kind"] == "text" else BALANCE_WEIGHT * found
        total: Tensor = _cross_entropy(logits, y) + balance
        return total
    if isinstance(module, SkipNetwork):
        return _cross_entropy(skips.training_logits(module, x, generator), y)
    return _cross_entropy(module(x), y)


def _balance(module: nn.Module, routings: list[Routing]) -> Tensor:
    """The layers' own losses; what they learn outside of autograd is moved here as well.

    The next step is the first to see it, as nothing that was moved has a part in the gradient.
    """
    assert isinstance(module, text.Transformer)
    module.after_step(routings)
    return torch.stack([routing.loss for routing in routings]).sum()


def training_flops(spec: Spec) -> float:
    """FLOPs of one example's forward and backward pass: three times the mean forward pass."""
    module, example = build(spec), example_of(spec)
    if isinstance(module, Supernet):
        mean = nested.mean_flops(module, example)
    elif spec["form"] in ROUTED:
        # With ReLU, new weights take about half of the experts, more than a trained layer does: so
        # such a network owes no part of its lead to training.
        mean = fmean(float(count_flops(partial(module, k=k), example)) for k in spec["used"])
    elif isinstance(module, SkipNetwork):  # the whole network in every step: a little too much
        whole = module.layer_costs(example).whole
        return 3e6 * float(whole)
    else:
        mean = float(count_flops(module, example))
    return 3e6 * mean / len(example)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    loss: Tensor = functional.cross_entropy(logits.flatten(0, -2), y.flatten())
    return loss


def _nested(spec: Spec) -> nn.Module:
    return nested.build(spec, example_of(spec))


def _features_exits(spec: Spec) -> nn.Module:
    trunk = features.mlp(spec["inputs"], spec["classes"], spec["hidden"])
    at = [2 * layer + 1 for layer in range(len(spec["hidden"]) - 1)]  # after each ReLU but the last
    return EarlyExit(trunk, at, example=example_of(spec))


def _convnet(spec: Spec) -> nn.Sequential:
    return images.convnet(
        spec["channels"], spec["classes"], spec["width"], images.stages(min(spec["side"]))
    )


def _images_exits(spec: Spec) -> nn.Module:
    trunk = _convnet(spec)
    # not after the first convolution, unless the images are so small that there is no other place
    return EarlyExit(trunk, list(range(1, len(trunk) - 2)) or [0], example=example_of(spec))


def _images_routed(spec: Spec) -> nn.Module:
    halvings = images.stages(min(spec["side"]))
    return images.RoutedConvNet(
        spec["channels"], spec["classes"], spec["width"], halvings, experts=spec["experts"]
    )


def _transformer(spec: Spec) -> nn.Module:
    return text.Transformer(
        spec["width"], spec["layers"], spec["context"], spec["form"], spec.get("experts", 8)
    )


def _text_exits(spec: Spec) -> nn.Module:
    """Exits after every block but the last, each with a norm and an unembedding of its own."""
    width, layers = spec["width"], spec["layers"]
    trunk = text.Transformer(width, layers, spec["context"], "dense")
    heads = [text.head(width) for _ in range(layers - 1)]
    return EarlyExit(trunk, list(range(layers - 1)), example=example_of(spec), heads=heads)


_MAKERS: dict[tuple[str, str], Callable[[Spec], nn.Module]] = {
    ("features", "dense"): lambda s: features.mlp(s["inputs"], s["classes"], s["hidden"]),
    ("features", "exits"): _features_exits,
    ("features", "nested"): _nested,
    ("features", "routed"): lambda s: features.RoutedMLP(
        s["inputs"], s["classes"], width=s["width"], hidden=s["hidden"], experts=s["experts"]
    ),
    ("images", "dense"): _convnet,
    ("images", "exits"): _images_exits,
    ("images", "nested"): _nested,
    ("images", "routed"): _images_routed,
    ("text", "dense"): _transformer,
    ("features", "skips"): skips.build,
    ("images", "skips"): skips.build,
    ("text", "skips"): skips.build,
    ("text", "exits"): _text_exits,
    ("text", "nested"): _nested,
    ("text", "routed"): _transformer,
    ("text", "fine"): _transformer,
    ("text", "relu"): _transformer,
}
