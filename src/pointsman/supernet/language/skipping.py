"""Sub-layers of a decoder as choices of a supernet, and what is to do where some were left out."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.parts import Setting
from pointsman.supernet.elastic.plan import Plan
from pointsman.supernet.language.sublayers import (
    Kind,
    Nothing,
    Sublayer,
    find_sublayers,
    layer_list,
)


@dataclass(frozen=True)
class SkipSublayers:
    """Whether a sub-layer of a decoder runs, decided for each: a declaration for `make_elastic`.

    A sub-layer that does not run adds nothing, and its normalisation is not computed either. Put
    `tidy` around a subnet that is extracted. Widths and heads declared beside it do not depend on
    whether their sub-layer runs, so several genotypes may be one subnet.

    Args:
        kind: "attention" or "feed-forward"; None: both.
    """

    kind: Kind | None = None

    def declare(self, plan: Plan) -> None:
        """A choice for each sub-layer, named after its module with ".kept"."""
        found = find_sublayers(plan.model, plan.example)
        for each in found:
            if self.kind in (None, each.kind):
                dial = plan.dial(f"{each.name}.kept", (False, True), each.name)
                for setting in _settings(plan.model, each, dial):
                    plan.add(setting)


def _settings(model: nn.Module, sublayer: Sublayer, dial: Dial) -> list[Setting]:
    found = [_setting(model, p.name, Nothing(p.width, p.answers), dial) for p in sublayer.pieces]
    if sublayer.norm is not None:
        found.append(_setting(model, sublayer.norm, nn.Identity(), dial))
    return found


def _setting(model: nn.Module, name: str, instead: nn.Module, dial: Dial) -> Setting:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(name)
    return Setting(model.get_submodule(owner), attribute, dial, (instead, module))


def tidy(model: nn.Module) -> nn.Module:
    """The model without layers in which nothing is left, and with its caches numbered anew.

    Layers of `transformers` keep keys and values under a number of their own, and the first of
    them tells how long the text is: where an attention was left out, the others move up. The
    number of layers in the configuration follows.

    Args:
        model: changed in place, and returned.

    Raises:
        InputError: nothing is left, or attention was left out of a model whose layers keep caches
            of several kinds (sliding and full).
    """
    name, layers = layer_list(model)
    left = [at for at, layer in enumerate(layers) if not _empty(layer)]
    if not left:
        raise InputError("at least one sub-layer of a decoder stays, all of them were left out")
    config: Any = getattr(model, "config", None)
    kinds = list(getattr(config, "layer_types", None) or [])
    caching: list[Any] = [m for at in left for m in layers[at].modules() if hasattr(m, "layer_idx")]
    numbers = sorted({int(module.layer_idx) for module in caching})
    if len(set(kinds)) > 1 and numbers != left:
        raise InputError(
            "attention can be left out where all layers keep the same kind of cache, these are "
            f"{sorted(set(kinds))}: leave out whole layers or feed-forwards"
        )
    for module in caching:
        module.layer_idx = numbers.index(int(module.layer_idx))
    if len(left) < len(layers):
        owner, _, attribute = name.rpartition(".")
        kept = nn.ModuleList(layers[at] for at in left)
        setattr(model.get_submodule(owner), attribute, kept)
        if config is not None:
            config.num_hidden_layers = len(left)
            if kinds:
                config.layer_types = [kinds[at] for at in left]
    return model


def _empty(layer: nn.Module) -> bool:
    return any(isinstance(m, Nothing) for m in layer.modules()) and not list(layer.parameters())
