"""Layer dropping: the sub-layers whose output resembles their input are left out, untrained.

He et al., "What Matters in Transformers? Not All Attention is Needed" (2024, arXiv 2406.15786).
With x the residual stream before a sub-layer and y = x + f(norm(x)) the one after it, how much it
matters is one minus their likeness on calibration text,

    S = 1 - mean over tokens of cos(x, y),

and the sub-layers of the smallest S go: attention only, feed-forwards only, whole layers (x and y
around the layer), or both kinds in one list. All scores are taken from the whole model; the variant
that takes them anew after each drop is there as `again`.

Where we depart: nothing. Padding counts as tokens, so calibrate on texts without any.

Legend: n sequences, S tokens, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.language.calling import call
from pointsman.supernet.language.skipping import SkipSublayers, tidy
from pointsman.supernet.language.sublayers import Sublayer, find_sublayers, layer_list
from pointsman.supernet.making import make_elastic
from pointsman.supernet.supernet import Supernet

Unit = Literal["attention", "feed-forward", "either", "layer"]


class SublayerDropping:
    """Which sub-layers of a pre-norm decoder matter least, and the decoder without them.

    Args:
        unit: what is dropped: "attention" or "feed-forward" sub-layers, "either" from one list, or
            a "layer" with both.
        again: take scores anew after each drop instead of all from the whole model.

    Attributes:
        scores_: S of each unit of the whole model, by name.
        order_: names, the first to be dropped first.
        supernet_: a copy of the model with a choice a sub-layer, (False, True).
    """

    def __init__(self, unit: Unit = "either", *, again: bool = False) -> None:
        self.unit, self.again = unit, again

    def fit(self, model: nn.Module, batches: Iterable[Any]) -> Self:
        """Score the units on calibration text.

        Args:
            model: a decoder, see `find_sublayers`; stays as it is.
            batches: what it is called with: token ids (n, S), or mappings of its arguments.

        Raises:
            InputError: no batch, or a model without sub-layers that can be left out.
        """
        kept = list(batches)
        if not kept:
            raise InputError("scores are taken on at least one batch of text, got none")
        self.supernet_: Supernet = make_elastic(model, kept[0], [SkipSublayers()])
        self.supernet_.train(model.training)
        body: Any = self.supernet_.body
        sublayers = find_sublayers(body.body, kept[0])
        self._units = _units(sublayers, self.unit, layer_list(body.body)[0])
        self.scores_ = self._score(kept, ())
        self.order_ = sorted(self.scores_, key=self.scores_.__getitem__)
        if self.again:
            order: list[str] = []
            while len(order) < len(self._units):
                now = self._score(kept, order)
                order.append(min((n for n in now if n not in order), key=now.__getitem__))
            self.order_ = order
        return self

    def genotype(self, names: Iterable[str]) -> tuple[int, ...]:
        """The subnet of `supernet_` without these units.

        Raises:
            InputError: a name that is none of the units'.
        """
        gone: set[str] = set()
        for name in names:
            if name not in self._units:
                raise InputError(f"the units are {list(self._units)}, got {name!r}")
            gone |= {f"{each.name}.kept" for each in self._units[name]}
        return tuple(int(choice.name not in gone) for choice in self.supernet_.space.choices)

    def drop(self, count: int) -> nn.Module:
        """A new model without the `count` units that matter least.

        Raises:
            InputError: as many as there are, or a negative count.
        """
        if not 0 <= count < len(self._units):
            raise InputError(
                f"between 0 and {len(self._units) - 1} of {len(self._units)} units can be "
                f"dropped, got {count}"
            )
        return self.without(self.order_[:count])

    def without(self, names: Iterable[str]) -> nn.Module:
        """A new model without the units of these names."""
        return tidy(self.supernet_.extract(self.genotype(names)))

    def _score(self, batches: Sequence[Any], gone: Iterable[str]) -> dict[str, float]:
        """S of every unit while some are left out."""
        body: Any = self.supernet_.body
        total = dict.fromkeys(self._units, 0.0)
        tokens = 0
        self.supernet_.use(self.genotype(gone))
        with evaluating(self.supernet_), torch.no_grad():
            for batch in batches:
                with body.in_force(), _streams(body.body, self._units) as streams:
                    call(body.body, batch)
                for name, (before, after) in streams.items():
                    likeness = functional.cosine_similarity(before.double(), after.double(), dim=-1)
                    total[name] += float(likeness.sum())
                tokens += likeness.numel()
        self.supernet_.use([1] * len(self.supernet_.space.choices))
        return {name: 1 - likeness / tokens for name, likeness in total.items()}


def _units(
    sublayers: Sequence[Sublayer], unit: Unit, list_name: str
) -> dict[str, tuple[Sublayer, ...]]:
    """The sub-layers of each unit, by its name."""
    if unit != "layer":
        return {each.name: (each,) for each in sublayers if unit in ("either", each.kind)}
    layers = sorted({each.layer for each in sublayers})
    return {
        f"{list_name}.{at}": tuple(each for each in sublayers if each.layer == at) for at in layers
    }


@contextmanager
def _streams(
    model: nn.Module, units: dict[str, tuple[Sublayer, ...]]
) -> Iterator[dict[str, list[Tensor]]]:
    """The residual stream before and after each unit, gathered during a call."""
    found: dict[str, list[Tensor]] = {name: [] for name in units}
    handles = []
    for name, parts in units.items():
        whole = len(parts) > 1  # a layer, whose output is the stream itself
        first, last = (name, name) if whole else (parts[0].stream, parts[0].pieces[-1].name)

        def before(module: nn.Module, inputs: Any, options: Any, name: str = name) -> None:
            values = (*inputs, *options.values())
            found[name].append(next(value for value in values if isinstance(value, Tensor)))

        def after(
            module: nn.Module, inputs: Any, output: Any, name: str = name, whole: bool = whole
        ) -> None:
            given = output[0] if isinstance(output, tuple | list) else output
            found[name].append(given if whole else found[name][0] + given)

        entered, left = model.get_submodule(first), model.get_submodule(last)
        handles.append(entered.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(left.register_forward_hook(after))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
