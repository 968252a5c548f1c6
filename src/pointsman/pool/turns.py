"""Which text of a conversation routes it, in logs and at the gateway alike."""

from collections.abc import Iterable, Mapping
from typing import Any

READ_TEXT = 200_000  # characters of a query that routing looks at


def last_turn(messages: Iterable[Mapping[str, Any]]) -> str:
    """The text parts of the last turn of the user, joined by line breaks.

    Args:
        messages: of a chat, each with "role" and "content", a text or a list of parts.
    """
    turn: list[str] = []
    for message in reversed(list(messages)):
        if message.get("role") == "user":
            turn[:0] = message_texts(message.get("content"))
        elif turn:
            break
    query = "\n".join(turn)[:READ_TEXT]
    return query.encode("utf-8", "replace").decode() if not query.isascii() else query


def message_texts(content: Any) -> list[str]:
    """The texts of one message's content; other parts are left aside."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]
