"""Calling a language model, ours or one of `transformers`, without a cache, and reading its answer.

Nothing is imported from `transformers` here.

Legend: n sequences, S tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

FIRST_OUTPUTS = ("logits", "last_hidden_state")


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """No keys and values are kept meanwhile: `config.use_cache` is off where there is one."""
    every: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = [config for config in every if getattr(config, "use_cache", False)]
    try:
        for config in configs:
            config.use_cache = False
        yield
    finally:
        for config in configs:
            config.use_cache = True


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's answer to a tensor, to a mapping of its arguments, or to a tuple of them."""
    with without_cache(model):
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def logits_of(answer: Any) -> Tensor:
    """The logits of what a model answers: a tensor, the first of a tuple, or `.logits`.

    Raises:
        InputError: there is no tensor where they should be.
    """
    for name in FIRST_OUTPUTS:
        found = getattr(answer, name, None)
        if isinstance(found, Tensor):
            return found
    first = answer[0] if isinstance(answer, tuple | list) and answer else answer
    if not isinstance(first, Tensor):
        raise InputError(
            "a language model answers logits, alone, first in a tuple or as .logits, got "
            f"{type(answer).__name__}"
        )
    return first


def next_token_losses(answer: Any, next_nS: Tensor) -> Tensor:
    """(n, S) cross-entropy of each next token, in nats.

    Args:
        answer: of the model: logits (n, S, V), see `logits_of`.
        next_nS: what follows each token that was read.
    """
    logits_nSV = logits_of(answer)
    losses = functional.cross_entropy(
        logits_nSV.flatten(0, 1), next_nS.flatten().long(), reduction="none"
    )
    return losses.view(next_nS.shape)
