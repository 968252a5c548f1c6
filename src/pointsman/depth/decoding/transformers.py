"""Causal models of Hugging Face's `transformers`, layer by layer over our own cache.

The model's own forward says what each layer is handed at given positions (embeddings, rotary
tables); the layer gets that, a mask of what it may see in our cache, and the cache in place of the
model's. So layers may hold different tokens, which the caches of `transformers` do not allow for.
Works for whatever hands its layers an attention mask and a cache with `update`: Llama, GPT-2, OPT,
GPT-NeoX, Qwen, Phi, ... Each model is tried on a few tokens first, and refused where its layers one
by one say anything else than the model.

Nothing is imported from `transformers` here.

Legend: n sequences, m of them run now, q tokens of each, D width, V vocabulary, L layers.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.depth.cache import KeyValueCache, Slots
from pointsman.depth.decoding.positions import CACHE_NAMES, PositionTable, alike, context_of
from pointsman.depth.trunks.shell import Call, Shell, hidden_of
from pointsman.depth.trunks.transformers import layers_of
from pointsman.errors import InputError, PointsmanError, reason
from pointsman.modules import evaluating

TAIL_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "project_out")
TRIAL = 5  # tokens a model is tried on
ROOM = 10.0  # how far answers may lie apart: multiples of sqrt(epsilon) of the largest logit


class TransformersDecoder(nn.Module):
    """A `CausalTrunk` over a causal language model of `transformers`.

    Args:
        model: with an unembedding, such as `LlamaForCausalLM`; shared, not copied.

    Attributes:
        names: of the L layers.
        context: positions that the model tells apart; where layers look back through a sliding
            window, no more than this window, within which it makes no difference.

    Raises:
        InputError: layers that cannot be run one by one over our cache, such as those with a
            recurrent state or another attention implementation than "sdpa" and "eager".
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.list_name, layers = layers_of(model)
        self._members = tuple(layers)  # of the model; a tuple does not register them again
        self.names = tuple(f"{self.list_name}.{at}" for at in range(len(layers)))
        self.context = context_of(config)
        attention = getattr(config, "_attn_implementation", None) or "eager"
        if attention not in ("sdpa", "eager"):
            raise InputError(
                f"layers over our cache need the attention 'sdpa' or 'eager', got {attention!r}: "
                "load the model with attn_implementation='sdpa'"
            )
        self._added = attention == "eager"  # its masks are added to the scores
        self._cache_name = _cache_name(layers[0])
        self._table: PositionTable | None = None
        self._embeds = False  # what comes before the layers is the embedding alone
        self._known: tuple[object, list[dict[str, Any]]] | None = None
        self._tail: tuple[nn.Module, ...] = ()  # the model holds them already
        ids = torch.arange(TRIAL, device=next(model.parameters()).device)[None]
        with evaluating(model), torch.no_grad():
            self._shell = Shell.watching(model, self.list_name, self._arguments(ids, None))
            if self._shell.order != tuple(range(len(layers))):
                raise InputError(f"{type(model).__name__} runs some of its layers several times")
            self._signatures = [
                list(inspect.signature(layer.forward).parameters) for layer in layers
            ]
            self._try_out(ids)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (n, S) → logits (n, S, V), by the model itself."""
        logits: Tensor = self.model(**self._arguments(ids, None)).logits
        return logits

    def begin(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids (m, q) at positions (m, q), from 0 on if None → (m, q, D).

        Raises:
            InputError: more tokens than the context.
        """
        if x.ndim != 2 or x.shape[1] > self.context:
            raise InputError(
                f"token ids are (sequences, up to {self.context} tokens), got {tuple(x.shape)}"
            )
        if self._embeds:
            embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
            hidden: Tensor = embedding(x)
            return hidden
        return self._handed(x, positions)

    def block(
        self,
        at: int,
        state: Tensor,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One layer, see `CausalTrunk`."""
        handed = {**self._beside(state, positions)[at]}
        if cache is not None:
            if positions is None:
                raise InputError("over a cache, layers need the positions of their tokens")
            slots = cache.claim(at, positions, rows)
            seen = cache.visible(at, positions, rows)
            handed["attention_mask"] = self._mask(seen, state)
            handed[self._cache_name] = _Bridge(cache, slots, rows)
        output = self._members[at](state, **handed)
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result

    def store(
        self,
        at: int,
        state: Tensor,
        positions: Tensor,
        cache: KeyValueCache,
        rows: Tensor | None = None,
    ) -> None:
        """Only keys and values of a layer: it runs up to where it hands them to the cache."""
        slots = cache.claim(at, positions, rows)
        handed = {**self._beside(state, positions)[at]}
        handed[self._cache_name] = _Bridge(cache, slots, rows, stop=True)
        try:
            self._members[at](state, **handed)
        except _Stored:
            return
        raise InputError(f"{self.names[at]} did not hand its keys and values to the cache")

    def features(self, state: Tensor) -> Tensor:
        """The hidden states themselves, (n, S, D)."""
        return state

    def finish(self, state: Tensor) -> Tensor:
        """Hidden states of any layer through the model's own norm and unembedding."""
        if not self._tail:
            return self._finish_by_forward(state)
        for part in self._tail:
            state = part(state)
        return state

    def cache(self, rows: int) -> KeyValueCache:
        """An empty cache for so many sequences."""
        return KeyValueCache(len(self.names), rows, self.context)

    def _finish_by_forward(self, state: Tensor) -> Tensor:
        """By the model's own forward, in which the last layer gives this state."""
        ids = torch.zeros(state.shape[:2], dtype=torch.int64, device=state.device)
        logits: Tensor = self._shell.finished(state, self._arguments(ids, None)).logits
        return logits

    def _arguments(self, ids: Tensor, positions: Tensor | None) -> dict[str, Any]:
        if positions is None:
            places = torch.arange(ids.shape[1], device=ids.device)[None]
        else:
            places = positions.clamp(min=0)
        return {"input_ids": ids, "position_ids": places, "use_cache": False, "return_dict": True}

    def _handed(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Hidden states before the first layer; what layers are handed beside is remembered."""
        calls = self._shell.calls(self._arguments(ids, positions))
        hidden = hidden_of(*calls[0])
        beside = [self._named(at, call) for at, call in enumerate(calls)]
        self._known = (_key(hidden, positions), beside)
        return hidden

    def _beside(self, state: Tensor, positions: Tensor | None) -> list[dict[str, Any]]:
        """What each layer is handed with these positions beside the hidden states."""
        key = _key(state, positions)
        if self._known is not None and self._known[0] == key:
            return self._known[1]
        if self._table is not None and positions is not None:
            self._known = (key, [self._table.at(positions, state, self._chunk)] * len(self.names))
        else:
            ids = torch.zeros(state.shape[:2], dtype=torch.int64, device=state.device)
            self._handed(ids, positions)
        assert self._known is not None
        return self._known[1]

    def _named(self, at: int, call: Call) -> dict[str, Any]:
        args, options = call
        named = dict(zip(self._signatures[at], args, strict=False)) | options
        return {name: value for name, value in named.items() if name != self._signatures[at][0]}

    def _mask(self, seen: Tensor | None, state: Tensor) -> Tensor | None:
        """A mask in the form that the attention wants; None: one token each, which sees all."""
        if seen is None and state.shape[1] == 1:
            return None
        if seen is None:
            raise InputError("several tokens of one text cannot all see the same")
        if not self._added:
            return seen
        low = torch.finfo(state.dtype).min
        return torch.zeros_like(seen, dtype=state.dtype).masked_fill(~seen, low)

    def _try_out(self, ids: Tensor) -> None:
        """Refuse a model whose layers over our cache say anything else than the model."""
        kind = type(self.model).__name__
        try:
            wanted = self.model(**self._arguments(ids, None)).logits
            cache, found = self.cache(1), []
            for start, stop in ((0, TRIAL - 2), (TRIAL - 2, TRIAL - 1), (TRIAL - 1, TRIAL)):
                positions = torch.arange(start, stop, device=ids.device)[None]
                x = self.begin(ids[:, start:stop], positions)
                for at in range(len(self.names)):
                    x = self.block(at, x, positions, cache)
                found.append(x)
            state = torch.cat(found, dim=1)
            logits = self._finish_by_forward(state)
        except PointsmanError:
            raise
        except Exception as error:
            raise InputError(
                f"{kind} cannot be run layer by layer over our cache, {reason(error)}"
            ) from error
        if not _close(logits, wanted):
            raise InputError(
                f"{kind} run layer by layer over our cache answers differently from {kind} itself: "
                "its layers keep more than keys and values, or see more than a causal mask says"
            )
        self._tail = self._shortcut(state)
        self._look_for_shortcuts(ids)
        self._known = None

    def _look_for_shortcuts(self, ids: Tensor) -> None:
        """What comes before the layers by itself, where trying says that it is all there is."""
        embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        positions = torch.arange(1, 1 + TRIAL, device=ids.device)[None]
        hidden = self._handed(ids, positions)
        assert self._known is not None
        wanted = self._known[1]
        table = PositionTable.of(self.model, wanted, TRIAL)
        if table is None:
            return
        found = table.at(positions, hidden, self._chunk)
        if all(alike(found, layer) for layer in wanted):
            self._table = table
            plain = embedding(ids)
            self._embeds = plain.shape == hidden.shape and torch.equal(plain, hidden)

    def _chunk(self, positions: Tensor) -> dict[str, Any]:
        """What the first layer is handed at positions (1, q)."""
        known = self._known
        self._handed(torch.zeros_like(positions), positions)
        assert self._known is not None
        found, self._known = self._known[1][0], known
        return found

    def _shortcut(self, state: Tensor) -> tuple[nn.Module, ...]:
        """The last norm and the unembedding by themselves, where that is all there is."""
        owner: Any = self.model.get_submodule(self.list_name.rpartition(".")[0])
        found = [getattr(owner, name, None) for name in TAIL_NAMES]
        unembed: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        tail = tuple(part for part in (*found, unembed) if part is not None)
        twice = torch.cat([state, 3 * state - 1])
        x = twice
        try:
            for part in tail:
                x = part(x)
        except RuntimeError:  # such as widths that do not fit: there is more to it
            return ()
        return tail if torch.equal(x, self._finish_by_forward(twice)) else ()


class _Stored(Exception):  # noqa: N818
    """Keys and values are in the cache: the rest of the layer need not run."""


class _Bridge:
    """Our cache in the place where a layer expects that of `transformers`."""

    is_compileable = False

    def __init__(
        self, cache: KeyValueCache, slots: Slots, rows: Tensor | None, stop: bool = False
    ) -> None:
        self._cache, self._slots, self._rows, self._stop = cache, slots, rows, stop

    def update(
        self, keys: Tensor, values: Tensor, *about: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what the layer found; all that it may see."""
        self._cache.write(self._slots, keys, values)
        if self._stop:
            raise _Stored
        return self._cache.read(self._slots.layer, self._rows)


def _cache_name(layer: nn.Module) -> str:
    parameters = inspect.signature(layer.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise InputError(
        f"{type(layer).__name__} takes no cache ({', '.join(CACHE_NAMES)}): such layers cannot be "
        "run one by one"
    )


def _key(state: Tensor, positions: Tensor | None) -> object:
    """Tells whether layers are handed the same again."""
    if positions is None:
        return (tuple(state.shape[:2]), state.dtype)
    return _Same(positions, state.dtype)


class _Same:
    """Equal to another only for the very same tensor, not changed since."""

    def __init__(self, positions: Tensor, dtype: torch.dtype) -> None:
        self.positions, self.dtype = positions, dtype
        self.version = None if positions.is_inference() else positions._version

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Same)
            and self.positions is other.positions
            and self.version == other.version
            and self.version is not None
            and self.dtype == other.dtype
        )

    __hash__ = None  # type: ignore[assignment]


def _close(found: Tensor, wanted: Tensor) -> bool:
    room = ROOM * torch.finfo(wanted.dtype).eps ** 0.5 * float(wanted.abs().max())
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= room
