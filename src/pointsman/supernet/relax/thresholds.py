"""Overlapping options decided by how large the weights are that a larger option adds.

Stamoulis et al. 2019, "Single-Path NAS: Designing hardware-efficient ConvNets in less than 4
hours", arXiv 1904.02877. One kernel holds all options of a layer: w = w_3 + 1[|w_5-3|^2 > t] w_5-3,
where w_3 is the inner 3x3 part of a 5x5 kernel and w_5-3 the ring around it, and likewise for the
first half of the channels and the rest. The thresholds t are trained with the weights: the step is
hard, its gradient that of a sigmoid. With the expected cost in the loss, sum of the costs of the
options weighed by the same indicators, architecture, weights and cost are trained in one run.

On a supernet this is a mixture: the shares of a choice's options are products of indicators, which
sum over the options that keep a weight to the indicator of that weight (see `Sliced`).

Where we depart: sizes are measured in those of the same weights at the start, because they grow
with the number of weights and a sigmoid has no slope far from its step (the authors use thresholds
for each layer for the same reason); an indicator stands on every tensor that an option cuts, not on
the depthwise kernel alone, so that norms and pointwise layers are cut with it.

Legend: O options of a choice, from the smallest.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic.dial import Dial
from pointsman.supernet.elastic.parts import Cut
from pointsman.supernet.elastic.sliced import Sliced
from pointsman.supernet.space import Option
from pointsman.supernet.supernet import Supernet


class Thresholds(nn.Module):
    """One trainable threshold for what each option adds to the one before it.

    Args:
        supernet: its weights decide; it is not kept as a module. It is at its start.
        kernels: names of choices → name of the parameter whose size decides, such as
            {"blocks.0.spread.kernel": "blocks.0.spread.weight"}; both as in the whole network.
        droppable: names among them of which even the first option can be dropped; the layer then
            gives nothing, as a residual block that is skipped does where its last layer has no
            bias.
        start: of every threshold, in sizes of the weights at the start; below 1, everything is on.

    Raises:
        InputError: an unknown choice, or a parameter that it does not cut.
    """

    def __init__(
        self,
        supernet: Supernet,
        kernels: Mapping[str, str],
        droppable: Sequence[str] = (),
        start: float = 0.5,
    ) -> None:
        super().__init__()
        self._places = [_Place(supernet, *names) for names in kernels.items()]
        self.droppable = tuple(droppable)
        self.levels = nn.ParameterList(
            torch.full((len(place.added),), start) for place in self._places
        )

    def mix(self) -> dict[str, Tensor]:
        """Set the mixture of every choice; gives the shares (O,) by name of the choice."""
        shares = {}
        for place, level in zip(self._places, self.levels, strict=True):
            sizes = place.sizes()
            soft = (sizes - level).sigmoid()
            on = (sizes > level).to(soft) + soft - soft.detach()
            if place.name not in self.droppable:
                on = torch.cat([on.new_ones(1), on[1:]])
            reached = on.cumprod(dim=0)  # an option is on if those before it are
            shares[place.name] = reached - torch.cat([reached[1:], reached.new_zeros(1)])
            place.dial.mixture = shares[place.name]
        return shares

    def derive(self) -> dict[str, Option | None]:
        """The largest option that is on, by name of the choice; None: not even the first is."""
        with torch.no_grad():
            shares = self.mix()
        taken = {name: share.argmax().item() if share.any() else None
                 for name, share in shares.items()}  # fmt: skip
        found: dict[str, Option | None] = {}
        for place in self._places:
            place.dial.mixture = None
            at = taken[place.name]
            found[place.name] = None if at is None else place.dial.choice.options[int(at)]
        return found


class _Place:
    """A choice and the weights that its options add, one after another."""

    def __init__(self, supernet: Supernet, name: str, parameter: str) -> None:
        self.name = name
        body = supernet.body
        dials = {dial.choice.name: dial for dial in supernet.dials}
        if name not in dials or not isinstance(body, Sliced):
            raise InputError(f"the choices of this supernet are {list(dials)}, got {name!r}")
        self.dial: Dial = dials[name]
        owner, _, own = parameter.rpartition(".")
        module = body.body.get_submodule(owner)
        self.weight: Tensor = getattr(module, own)
        kept_O = [torch.ones(self.weight.shape, dtype=torch.bool) for _ in self.dial.choice.options]
        cuts = [
            part
            for part in body.parts
            if isinstance(part, Cut)
            and (part.module, part.tensor, part.dial) == (module, own, self.dial)
        ]
        if not cuts:
            raise InputError(f"the size of {parameter!r} decides {name!r}, which does not cut it")
        for cut in cuts:
            shape = [1] * self.weight.ndim
            shape[cut.dim] = -1
            for kept, rows in zip(kept_O, cut.kept, strict=True):
                kept &= rows.view(shape)
        empty = torch.zeros_like(kept_O[0])
        before = [empty, *kept_O[:-1]]
        self.added = [kept & ~less for kept, less in zip(kept_O, before, strict=True)]
        self.at_start = self._squares().detach()

    def _squares(self) -> Tensor:
        return torch.stack([(self.weight * part).square().sum() for part in self.added])

    def sizes(self) -> Tensor:
        """(O,) squared size of what each option adds, in those at the start."""
        return self._squares() / self.at_start


def expected_cost(
    shares: Mapping[str, Tensor], tables: Mapping[tuple[str, ...], Tensor], fixed: float = 0.0
) -> Tensor:
    """What is run, weighed by the shares: differentiable, exact for shares of 0 and 1.

    Args:
        shares: (O,) by name of a choice, as `Thresholds.mix` gives.
        tables: names of the choices on which a layer's cost depends → its cost for each combination
            of their options, one dimension a choice.
        fixed: what else costs.
    """
    total = torch.tensor(fixed)
    for names, table in tables.items():
        left = table
        for name in names:
            left = torch.tensordot(shares[name].to(table), left, dims=1)
        total = total + left
    return total
