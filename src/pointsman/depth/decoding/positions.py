"""What the layers of a causal model of `transformers` are handed at each position.

Legend: m sequences, q tokens of each, S positions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from pointsman.errors import InputError

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class PositionTable:
    """What layers are handed at each position, kept: all that it depends on is the position.

    Filled in chunks as positions come up. Only for layers that are all handed the same, as tensors
    (1, q, ...) with one row per position; masks and caches are not among it, as ours replace them.
    """

    CHUNK = 256

    def __init__(self, context: int) -> None:
        self._context = context
        self._chunks: list[dict[str, Any]] = []
        self._whole: dict[str, Any] = {}
        self._like: tuple[torch.dtype, torch.device] | None = None

    @classmethod
    def of(cls, model: Any, handed: list[dict[str, Any]], tokens: int) -> "PositionTable | None":
        """A table, or None where what is handed does not depend on positions alone.

        Args:
            model: of `transformers`.
            handed: to each layer, for tokens (1, q).
            tokens: q.
        """
        ropes = str(getattr(model.config, "rope_parameters", "")) + str(
            getattr(model.config, "rope_scaling", "")
        )
        if "dynamic" in ropes or "longrope" in ropes:  # these depend on the length of the text
            return None
        by_position = all(
            leaf.ndim >= 2 and leaf.shape[:2] == (1, tokens)
            for layer in handed
            for leaf in _tensors(layer)
        )
        return cls(context_of(model.config)) if by_position else None

    def at(
        self, positions: Tensor, state: Tensor, chunk: Callable[[Tensor], dict[str, Any]]
    ) -> dict[str, Any]:
        """What layers are handed at positions (m, q); -1 as 0.

        Args:
            positions: of the tokens.
            state: hidden states; the table is made again where their type or device is another.
            chunk: positions (1, q) → what the model hands its first layer there.
        """
        if self._like != (state.dtype, state.device):
            self._chunks, self._like = [], (state.dtype, state.device)
        places = positions.clamp(min=0)
        most = int(places.max()) + 1 if places.numel() else 1
        if most > len(self._chunks) * self.CHUNK:
            while most > (start := len(self._chunks) * self.CHUNK):
                stop = min(start + self.CHUNK, max(self._context, most))
                wanted = torch.arange(start, stop, device=positions.device)[None]
                self._chunks.append(_without(chunk(wanted)))
            self._whole = _joined(self._chunks)
        return {name: _rows_at(value, places) for name, value in self._whole.items()}


def _without(handed: dict[str, Any]) -> dict[str, Any]:
    """Without mask and cache."""
    replaced = ("attention_mask", *CACHE_NAMES)
    return {name: None if name in replaced else value for name, value in handed.items()}


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Chunks (1, q, ...) one after the other, (S, ...)."""
    return {name: tree_map(_together, *(each[name] for each in chunks)) for name in chunks[0]}


def _together(*parts: Any) -> Any:
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return torch.cat([part[0] for part in parts])


def _rows_at(value: Any, places: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[places]
    if isinstance(value, tuple):
        return tuple(_rows_at(part, places) for part in value)
    return value


def _tensors(handed: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(_without(handed)) if isinstance(leaf, Tensor)]


def alike(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two layers are handed the same, masks and caches apart."""
    ours, theirs = tree_leaves(_without(found)), tree_leaves(_without(wanted))
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(ours, theirs, strict=True)
    )


def context_of(config: Any) -> int:
    """How many positions a model tells apart; no more than a sliding window, if it has one.

    Raises:
        InputError: the configuration does not say.
    """
    sizes = [getattr(config, name, None) for name in CONTEXT_NAMES]
    size = next((size for size in sizes if isinstance(size, int)), None)
    if size is None:
        raise InputError(
            f"{type(config).__name__} does not say how many positions the model tells apart "
            f"({', '.join(CONTEXT_NAMES)}): set max_position_embeddings"
        )
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True)
    return min(size, window) if isinstance(window, int) and slides else size
