"""Which part of a query is read, and its words.

A prompt may be a megabyte long, and a decision has to take its time from a few thousand
characters: instructions stand at the start or at the end, documents to work on between them.
"""

import re
from typing import NamedTuple

MOST_CHARACTERS = 8_192
WORD = re.compile(r"\w+")


class Reading(NamedTuple):
    """A text, in lower case, and its words: runs of letters, digits and underscores."""

    text: str
    lower: str
    words: list[str]


def read(text: str) -> Reading:
    """A text with its words."""
    lower = text.lower()
    return Reading(text, lower, WORD.findall(lower))


def read_part(query: str, most: int = MOST_CHARACTERS) -> str:
    """A query whole, or its first and its last `most` / 2 characters with a line break between."""
    if len(query) <= most:
        return query
    return f"{query[: most // 2]}\n{query[-(most // 2) :]}"
