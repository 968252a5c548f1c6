"""What the columns of an evaluation log are called, and how a name is taken apart.

A column of a wide log is a model's name and, before or behind it, a word for what it holds:
"gpt-4", "gpt-4 cost", "gpt-4|total_cost", "score/gpt-4". Words are compared without case, and
spaces and the characters _ / | : . - separate them.
"""

import re
from typing import NamedTuple

QUERY = ("query", "prompt", "question", "instruction", "user prompt", "user message", "messages")
# Names that tables without a log use as well; they count only where nothing else is the query.
QUERY_TOO = ("input", "text", "request", "problem", "content", "query text", "prompt text")
KEY = (
    "query id", "prompt id", "question id", "sample id", "example id", "item id", "request id",
    "task id", "id", "qid", "uid", "idx",
)  # fmt: skip
ROW_KEY = ("request id", "id", "uid", "idx")  # of these, some number answers and not queries
MODEL = ("model", "model name", "model id", "llm", "engine", "arm")
VECTOR = ("embedding", "vector", "embeddings", "query embedding", "query vector")
# Of these the first that is there becomes the group "task", by which routers may tell tasks apart.
TASK = (
    "task", "task name", "eval name", "dataset", "benchmark", "subject", "category", "topic",
    "domain", "task type",
)  # fmt: skip
GROUP = (
    "user", "user id", "tenant", "tenant id", "customer", "customer id", "team", "project",
    "organisation", "organization", "language", "lang", "source", "level", "difficulty", "country",
    "region", "channel", "key",
)  # fmt: skip
# Columns that no log means as a model, whatever numbers they hold.
NEVER_A_MODEL = (
    "index", "row", "row id", "unnamed 0", "year", "date", "time", "timestamp", "created", "split",
    "fold", "length", "words", "characters", "num tokens", "token count", "n", "count", "weight",
    "seed", "label", "target", "gold", "answer", "expected", "reference", "ground truth", "votes",
    "embedding id", "level", "difficulty", "hard",
)  # fmt: skip

QUALITY, COST, LATENCY, MILLISECONDS = "quality", "cost", "latency", "latency ms"
INPUT, OUTPUT, TOKENS = "input tokens", "output tokens", "tokens"
SIGNAL, SIGNAL_COST = "signal ", "signal cost "  # and then the name of the signal
IGNORED = "ignored"

SIGNALS = {
    "confidence": ("confidence", "conf", "certainty", "probability", "prob"),
    "margin": ("margin",),
    "agreement": ("agreement", "consistency", "self consistency", "vote share"),
    "verifier": ("verifier", "verifier score", "judge", "judge score", "verification"),
    "log-probability": (
        "logprob", "log prob", "mean logprob", "avg logprob", "log probability",
        "mean log probability",
    ),
}  # fmt: skip
# The order matters in a long log: the first of the words for one thing wins.
ROLES: dict[str, tuple[str, ...]] = {
    QUALITY: (
        "score", "quality", "correct", "is correct", "accuracy", "acc", "performance", "reward",
        "rating", "grade", "right", "success", "passed",
    ),
    COST: ("cost", "cost usd", "total cost", "cost us", "call cost", "usd", "dollars", "price"),
    INPUT: ("prompt tokens", "input tokens", "tokens in", "tokens prompt", "in tokens"),
    OUTPUT: ("completion tokens", "output tokens", "tokens out", "generated tokens", "out tokens"),
    TOKENS: ("tokens", "total tokens", "token num", "token count"),
    LATENCY: ("latency", "latency s", "seconds", "duration", "response time", "elapsed", "time"),
    MILLISECONDS: ("latency ms", "duration ms", "response time ms", "elapsed ms", "ms"),
    IGNORED: (
        "response", "answer", "output", "model response", "completion", "generation", "reply",
        "text", "error", "finish reason",
    ),
    **{SIGNAL + name: words for name, words in SIGNALS.items()},
    **{
        SIGNAL_COST + name: tuple(f"{word} cost" for word in words)
        for name, words in SIGNALS.items()
    },
}  # fmt: skip
ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
LONGEST = max(len(word.split()) for word in ROLE_OF)
WORD = re.compile(r"[^\s_/|:.\-]+")


class Named(NamedTuple):
    """A column's name, taken apart.

    Args:
        column: as it stands in the file.
        base: what is left of the name without the role: a model's, or "" where nothing is left.
        role: what the column holds, one of ROLES, or None where the name does not say.
        behind: whether the role stands behind the base.
    """

    column: str
    base: str
    role: str | None
    behind: bool = True


def plain(name: str) -> str:
    """A name in lower case, its words separated by single spaces."""
    return " ".join(word.casefold() for word in WORD.findall(name))


def taken_apart(column: str) -> Named:
    """The most words at the end of a name that say a role, else at its beginning."""
    found = list(WORD.finditer(column))
    words = [match[0].casefold() for match in found]
    for count in range(min(LONGEST, len(words)), 0, -1):
        role = ROLE_OF.get(" ".join(words[-count:]))
        if role is not None:
            base = "" if count == len(words) else column[: found[-count - 1].end()]
            return Named(column, base.strip(), role)
    for count in range(min(LONGEST, len(words) - 1), 0, -1):
        role = ROLE_OF.get(" ".join(words[:count]))
        if role is not None:
            return Named(column, column[found[count].start() :].strip(), role, behind=False)
    return Named(column, column, None)


def one_of(columns: list[str], words: tuple[str, ...]) -> str | None:
    """The column that is called by the first of some words that names any."""
    by_name = {plain(column): column for column in reversed(columns)}
    return next((by_name[word] for word in words if word in by_name), None)


def shown(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """A few names for a sentence, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(repr, names[:most])) + (f" and {more} more" if more > 0 else "")
