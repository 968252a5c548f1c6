"""Reading a request for a chat completion: what routing needs, and nothing changed that it sends.

The body is walked through once at its top level. What the gateway does not know stays as it was
written, to the byte: only the values that must differ upstream are replaced in the text.

Which text routes a conversation: the text parts of the last turn of the user, that is of all
messages of role "user" after the last message of another role that precedes them. The system
prompt and earlier turns do not take part, since evaluation logs hold single queries; the length of
everything counts against a model's context.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder
from typing import Any, NamedTuple

from pointsman.pool.turns import last_turn, message_texts
from pointsman.serve.refusal import RefusalError

BYTES_PER_TOKEN = 4.0  # of English text, for what is not counted by an upstream
TOKENS_PER_PART = 1000  # of an image or a recording, for the same

_WHITE = " \t\n\r"


class Needs(NamedTuple):
    """What a model must be able to take.

    Args:
        vision: there are image parts.
        audio: there are audio parts.
        tools: tools are offered.
        tokens: of prompt and answer, estimated.
    """

    vision: bool
    audio: bool
    tools: bool
    tokens: int


@dataclass(frozen=True)
class ChatRequest:
    """A request whose shape is known.

    Args:
        text: the JSON text as it came.
        spans: top-level key to the place of its value in `text`.
        values: top-level key to its value.
        query: the text that routes it.
        needs: what a model must be able to take.
        prompt_tokens: estimated.
    """

    text: str
    spans: Mapping[str, tuple[int, int]]
    values: Mapping[str, Any]
    query: str
    needs: Needs
    prompt_tokens: int

    @property
    def model(self) -> str:
        """The model that is asked for."""
        return str(self.values["model"])

    @property
    def stream(self) -> bool:
        """Whether the answer is wanted in pieces."""
        return self.values.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        options = self.values.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are to stay in the answer."""
        return self.values.get("logprobs") is True

    def answer_tokens(self, at_most: int) -> int:
        """Tokens that the answers may have in all, where one has `at_most` if nothing is said."""
        limit = self.values.get("max_completion_tokens") or self.values.get("max_tokens")
        each = limit if type(limit) is int and 0 < limit < at_most * 100 else at_most
        many = self.values.get("n")
        return each * (many if type(many) is int and 0 < many <= 128 else 1)

    def with_values(self, changed: Mapping[str, Any]) -> bytes:
        """The body with some top-level values replaced or added; all else as it came."""
        edits = [(*self.spans[k], json.dumps(v)) for k, v in changed.items() if k in self.spans]
        added = [(k, v) for k, v in changed.items() if k not in self.spans]
        if added:
            opening = self.text.index("{") + 1
            words = "".join(f"{json.dumps(key)}:{json.dumps(value)}," for key, value in added)
            edits.append((opening, opening, words))
        pieces: list[str] = []
        at = 0
        for start, end, words in sorted(edits):
            pieces += (self.text[at:start], words)
            at = end
        return "".join((*pieces, self.text[at:])).encode()


def parse(body: bytes) -> ChatRequest:
    """Read a body.

    Raises:
        RefusalError: it is no JSON object in UTF-8, or what routing reads has the wrong shape.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusalError(400, "the body must be JSON in UTF-8", code="invalid_json") from None
    try:
        values, spans = _top_level(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = f"the body must be a JSON object: {reason}"[:300]
        raise RefusalError(400, message, code="invalid_json") from None
    _check(values)
    messages = values["messages"]
    characters, kinds = _measure(messages)
    prompt = math.ceil(characters / BYTES_PER_TOKEN) + TOKENS_PER_PART * len(kinds)
    prompt += 4 * len(messages)
    tools = bool(values.get("tools") or values.get("functions"))
    if tools:
        start, end = spans.get("tools") or spans["functions"]
        prompt += math.ceil((end - start) / BYTES_PER_TOKEN)
    limit = values.get("max_completion_tokens") or values.get("max_tokens")
    answer = limit if type(limit) is int and 0 < limit < 10**9 else 0
    needs = Needs("image" in kinds, "audio" in kinds, tools, prompt + answer)
    return ChatRequest(text, spans, values, last_turn(messages), needs, prompt)


def _check(values: Mapping[str, Any]) -> None:
    model, messages = values.get("model"), values.get("messages")
    if not isinstance(model, str) or not model:
        raise RefusalError(400, "model must be a text", param="model")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(
            400, "messages must be a list with at least one message", param="messages"
        )
    if not all(isinstance(message, dict) for message in messages):
        raise RefusalError(400, "every message must be an object", param="messages")
    for key, kind, words in (
        ("stream", bool, "true or false"),
        ("stream_options", dict, "an object"),
        ("logprobs", bool, "true or false"),
    ):
        if values.get(key) is not None and not isinstance(values[key], kind):
            raise RefusalError(400, f"{key} must be {words}", param=key)


def _measure(messages: Iterable[Mapping[str, Any]]) -> tuple[int, list[str]]:
    """Characters of all text, and "image", "audio" or "other" for every other part."""
    characters, kinds = 0, []
    for message in messages:
        content = message.get("content")
        characters += sum(len(text) for text in message_texts(content))
        if isinstance(content, list):
            kinds += [_kind(part) for part in content if isinstance(part, dict)]
        calls = message.get("tool_calls")
        if calls:
            characters += len(str(calls))
    return characters, [kind for kind in kinds if kind != "text"]


def _kind(part: Mapping[str, Any]) -> str:
    kind = str(part.get("type", ""))
    if isinstance(part.get("text"), str) or kind == "refusal":
        return "text"
    for known in ("image", "audio"):
        if known in kind or known in " ".join(map(str, part)):
            return known
    return "other"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_SCAN = JSONDecoder(parse_constant=_refuse_constant).scan_once  # type: ignore[attr-defined]
_READ_STRING = json.decoder.scanstring  # type: ignore[attr-defined]


def _top_level(text: str) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    """Keys of a JSON object to values, and to the places of the values.

    Raises:
        ValueError: no such object, or a key that comes twice: upstreams differ on which of the two
            they believe.
    """
    values: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    at = _expect(text, _skip(text, 0), "{")
    at = _skip(text, at)
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            at = _expect(text, at, '"')
            key, at = _READ_STRING(text, at, True)
            at = _skip(text, _expect(text, _skip(text, at), ":"))
            try:
                value, end = _SCAN(text, at)
            except StopIteration as stop:
                raise ValueError(f"a value is missing at character {stop.value}") from None
            if key in values:
                raise ValueError(f"the key {key[:50]!r} comes twice")
            values[key], spans[key] = value, (at, end)
            at = _skip(text, end)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
        at = _expect(text, at, "}")
    if _skip(text, at) != len(text):
        raise ValueError(f"more text after its end, at character {at}")
    return values, spans


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _WHITE:
        at += 1
    return at


def _expect(text: str, at: int, sign: str) -> int:
    if text[at : at + 1] != sign:
        raise ValueError(f"expected {sign} at character {at}")
    return at + 1
