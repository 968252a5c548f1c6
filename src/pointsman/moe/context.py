"""What may be known of tokens beside their features.

Legend: T tokens of one call after padding is left out, n sequences, S places of a sequence.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from pointsman.errors import InputError

PER_TOKEN = ("ids", "task", "state")


@dataclass(frozen=True, eq=False)
class Context:
    """What a router may read of each token beside its features.

    A caller gives `ids`, `task`, `state` and `attention` in the shape of the layer's input; the
    layer fills in `sequence` and `position`, and hands the router everything flattened to tokens,
    with padding left out.

    Attributes:
        ids: (..., ) int64, such as the vocabulary ids of the tokens.
        task: (..., ) int64, the task, domain or modality each token belongs to.
        state: (..., P), what an earlier layer's router passed on.
        attention: (n, S, S), how much each place attends to each other; it stays whole.
        sequence: (T,) int64, which sequence a token belongs to. Filled in by the layer.
        position: (T,) int64, its place there. Filled in by the layer.
    """

    ids: Tensor | None = None
    task: Tensor | None = None
    state: Tensor | None = None
    attention: Tensor | None = None
    sequence: Tensor | None = None
    position: Tensor | None = None

    def of_tokens(self, shape: torch.Size, kept: Tensor | None, device: torch.device) -> Self:
        """The same for the flattened tokens of an input of this leading shape, padding left out.

        Args:
            shape: of the input without its feature dimensions, such as (n, S).
            kept: (T,) places of the real tokens among the flattened ones; None means all.
            device: of the tokens.

        Raises:
            InputError: a field that does not have this leading shape.
        """
        total, long = shape.numel(), shape[-1] if shape else 1
        place = torch.arange(total, device=device)
        found: dict[str, Tensor | None] = {
            "sequence": place.div(max(long, 1), rounding_mode="floor"),
            "position": place.remainder(max(long, 1)),
        }
        for name in PER_TOKEN:
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if value.shape[: len(shape)] != shape:
                raise InputError(
                    f"context.{name} must begin with the shape of the tokens, {tuple(shape)}, "
                    f"got {tuple(value.shape)}"
                )
            found[name] = value.reshape(total, *value.shape[len(shape) :])
        if kept is not None:
            found = {name: None if v is None else v[kept] for name, v in found.items()}
        return replace(self, **found)

    def require(self, *names: str, reader: str) -> tuple[Tensor, ...]:
        """These fields, all there.

        Raises:
            InputError: one of them is missing.
        """
        assert set(names) <= {field.name for field in fields(self)}
        for name in names:
            if getattr(self, name) is None:
                raise InputError(
                    f"{reader} reads `{name}` of each token: call the layer with "
                    f"context=Context({name}=...)"
                )
        return tuple(getattr(self, name) for name in names)
