"""What a query looks like, whatever it is about: length, digits, formulas, code, choices, negation.

Legend: N queries, F features.
"""

import re

import numpy as np
import numpy.typing as npt

from pointsman.pool.features.reading import Reading

Dense = npt.NDArray[np.float32]

QUESTION_WORDS = ("what", "which", "who", "when", "where", "why", "how", "if")
NEGATIONS = frozenset(
    ("not", "except", "least", "false", "incorrect", "never", "neither", "nor", "no", "without")
)
NUMBERED = frozenset(("statement", "step", "part", "case", "i", "ii", "iii", "iv"))
CODE = ("```", "def ", "class ", "import ", "return ", "for (", "while ", "#include", "();", "{\n")
FORMULA = "=^_{}<>+*/|\\"
WHOLE_ENDS = frozenset(("above", "these", "are", "and"))
WHOLE = re.compile(r"\b(?:all|none|both|neither)\b(?: of)?(?: the)? (?:above|these|are|and)\b")
CHOICE = re.compile(r"[ \t]*\(?(?:[A-Ja-j]|\d{1,2})[.):][ \t]+(.+)")
NUMERIC = re.compile(r"[^a-zA-Z]*\d[^a-zA-Z]*")
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

COUNTED = (
    "characters",
    "words",
    "different words",
    "lines",
    "sentences",
    "digits",
    "numbers",
    "capitals",
    "characters beyond ASCII",
    "formula signs",
    "signs of code",
    "question marks",
    "commas",
    "quotation marks",
    "blanks to fill",
    "negations",
    "numbered statements",
    "all or none of the above",
    "choices",
    "choices that are numbers",
    "words before the choices",
    "words of the longest choice",
    "words of the shortest choice",
)
MEASURED = (
    "mean length of a word",
    "length of the longest word",
    "digits a character",
    "capitals a character",
    *(f"asks {word}" for word in QUESTION_WORDS),
)
NAMES = COUNTED + MEASURED


def shape(reading: Reading, length: float | None = None) -> Dense:
    """(F,) features of one query, in the order of `NAMES`; counts as the logarithm of one more.

    Args:
        reading: of the query.
        length: characters of the whole query, default those of the part that is read.
    """
    query, lower, words = reading
    different = set(words)
    characters = max(1, len(query))
    sizes = list(map(len, words)) or [0]
    digits = sum(map(query.count, "0123456789"))
    capitals = sum(map(query.count, CAPITALS))
    stem, choices = _choices(query)
    spread = sorted(len(choice.split()) for choice in choices) or [0]
    counts = (
        len(query) if length is None else length,
        len(words),
        len(different),
        query.count("\n") + 1,
        query.count(". ") + query.count("? ") + query.count("! "),
        digits,
        sum(map(str.isdigit, words)),
        capitals,
        0 if query.isascii() else len(query) - len(query.encode("ascii", "ignore")),
        sum(map(query.count, FORMULA)),
        sum(map(query.count, CODE)),
        query.count("?"),
        query.count(","),
        query.count('"') + query.count("“"),
        query.count("__"),
        len(different & NEGATIONS),
        len(different & NUMBERED),
        len(WHOLE.findall(lower)) if different & WHOLE_ENDS else 0,
        len(choices),
        sum(NUMERIC.fullmatch(choice) is not None for choice in choices),
        stem,
        spread[-1],
        spread[0],
    )
    measured = (
        sum(sizes) / len(sizes),
        max(sizes),
        digits / characters,
        capitals / characters,
        *map(different.__contains__, QUESTION_WORDS),
    )
    features = np.array(counts + measured, dtype=np.float32)
    features[: len(COUNTED)] = np.log1p(features[: len(COUNTED)])
    return features


def _choices(query: str) -> tuple[int, list[str]]:
    """Words before the first choice to answer with, and the choices; none where under two."""
    choices: list[str] = []
    stem = 0
    for line in query.splitlines():
        found = CHOICE.match(line)
        if found is not None:
            choices.append(found[1])
        elif not choices:
            stem += len(line.split())
    return (stem, choices) if len(choices) > 1 else (len(query.split()), [])
