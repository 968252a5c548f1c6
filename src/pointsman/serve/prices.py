"""What an answer cost: its tokens, counted or estimated, times the prices of its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pointsman.serve.config import Model
from pointsman.serve.request import ChatRequest


@dataclass(frozen=True)
class Usage:
    """Tokens of one call.

    Args:
        prompt: tokens read, `cached` of them from the upstream's cache.
        answer: tokens written.
        cached: part of `prompt`.
        estimated: the upstream did not say; see `estimate`.
    """

    prompt: int
    answer: int
    cached: int = 0
    estimated: bool = False

    def cost(self, model: Model) -> float:
        """US$."""
        cached_price = (
            model.price_input if model.price_cached_input is None else model.price_cached_input
        )
        return (
            (self.prompt - self.cached) * model.price_input
            + self.cached * cached_price
            + self.answer * model.price_output
        ) / 1e6


def usage_from(said: Any) -> Usage | None:
    """The `usage` object of an upstream, or None where it does not tell both counts."""
    if not isinstance(said, Mapping):
        return None
    prompt, answer = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
    if prompt is None or answer is None:
        return None
    details = said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    return Usage(prompt, answer, min(prompt, cached or 0))


def estimate(request: ChatRequest, pieces: int = 0) -> Usage:
    """Tokens where the upstream did not say: four bytes a token of the prompt, one a piece seen."""
    return Usage(request.prompt_tokens, pieces, estimated=True)


def most(request: ChatRequest, model: Model) -> float:
    """US$ to set aside for a call: the prompt as estimated, and the longest answer allowed."""
    answer = request.answer_tokens(model.max_output)
    return Usage(request.prompt_tokens, answer).cost(model)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 10**10 else None
