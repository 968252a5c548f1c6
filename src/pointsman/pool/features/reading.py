"""Which part of a query is read.

A prompt may be a megabyte long, and a decision has to take its time from a few thousand
characters: instructions stand at the start or at the end, documents to work on between them.
"""

MOST_CHARACTERS = 16_384


def read_part(query: str, most: int = MOST_CHARACTERS) -> str:
    """A query whole, or its first and its last `most` / 2 characters with a line break between."""
    if len(query) <= most:
        return query
    return f"{query[: most // 2]}\n{query[-(most // 2) :]}"
