"""What decoding needs of a causal language model: its blocks, run for given positions over a cache.

A `Trunk` whose state is one tensor of hidden states, told which positions it is run for. `Decoder`
is one; `causal_trunk` makes one of a `transformers` model.

Legend: n sequences, m of them run now, q tokens of each, D width, V vocabulary, L layers.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoder import Decoder
from pointsman.errors import InputError


@runtime_checkable
class CausalTrunk(Protocol):
    """A decoder that runs layer by layer. Implementations are `nn.Module`s and are `Trunk`s too.

    Attributes:
        names: of the L blocks.
        context: how many positions it tells apart.
    """

    names: tuple[str, ...]
    context: int

    def begin(self, x: Any, positions: Tensor | None = None) -> Tensor:
        """Ids (m, q) at positions (m, q), -1 for none, from 0 on if None → states (m, q, D)."""
        ...

    def block(
        self,
        at: int,
        state: Tensor,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """One block, (m, q, D) → the same; over a cache, which it extends by these tokens.

        Args:
            at: which block.
            state: hidden states.
            positions: (m, q), ascending in each row; -1 fills rows that have fewer tokens. None: 0
                to q - 1.
            cache: None: a token sees those before it in `state` and itself.
            rows: (m,) of the cache; None: all.
        """
        ...

    def store(
        self,
        at: int,
        state: Tensor,
        positions: Tensor,
        cache: KeyValueCache,
        rows: Tensor | None = None,
    ) -> None:
        """Only keys and values of a block, from hidden states before it; the block does not run."""
        ...

    def features(self, state: Tensor) -> Tensor:
        """The hidden states themselves."""
        ...

    def finish(self, state: Tensor) -> Tensor:
        """Hidden states of any layer through the model's own norm and unembedding: (m, q, V)."""
        ...

    def cache(self, rows: int) -> KeyValueCache:
        """An empty cache for so many sequences."""
        ...


def causal_trunk(model: nn.Module) -> CausalTrunk:
    """The model itself where it is a `CausalTrunk`, else a trunk over a `transformers` model.

    The weights are shared with the model.

    Raises:
        InputError: another kind of model.
    """
    if isinstance(model, CausalTrunk):
        return model
    if hasattr(model, "get_output_embeddings") and hasattr(model, "config"):
        from pointsman.depth.decoding.transformers import TransformersDecoder

        return TransformersDecoder(model)
    raise InputError(
        f"decoding needs a {Decoder.__name__}, another CausalTrunk or a causal model of "
        f"transformers, got {type(model).__name__}"
    )
