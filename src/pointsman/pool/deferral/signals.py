"""What an answer gives away about itself: readers of confidence, margin, agreement and verdicts.

Each gives one number, higher is surer, or None where the answer does not tell. The same number has
to stand in the log that a policy is fitted on: a signal is only as good as the agreement between
the two.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
SHARE = re.compile(rf"{NUMBER}\s*(?:/|out of)\s*{NUMBER}")
PERCENT = re.compile(rf"{NUMBER}\s*%")
PLAIN = re.compile(rf"(?<![\w.]){NUMBER}(?![\w%])")
YES, NO = ("yes", "correct", "true", "right"), ("no", "incorrect", "false", "wrong")


def token_log_probabilities(choice: Mapping[str, Any]) -> list[float]:
    """Log-probabilities of the tokens of one choice of a chat completion, in order.

    Reads `choice["logprobs"]["content"][i]["logprob"]`, the layout of the OpenAI interface; empty
    where the choice has none.
    """
    content = (choice.get("logprobs") or {}).get("content") or []
    found = [token.get("logprob") for token in content]
    return [float(value) for value in found if isinstance(value, int | float)]


def token_margins(choice: Mapping[str, Any]) -> list[float]:
    """Probability of the likeliest less that of the second token, at each place of a choice.

    Reads `top_logprobs`, so at least two have to be asked for; places with fewer are left out.
    """
    margins = []
    for token in (choice.get("logprobs") or {}).get("content") or []:
        ranked = sorted(float(top["logprob"]) for top in token.get("top_logprobs") or ())
        if len(ranked) >= 2:
            margins.append(math.exp(ranked[-1]) - math.exp(ranked[-2]))
    return margins


def confidence(
    log_probabilities: Sequence[float], *, quantile: float | None = None
) -> float | None:
    """How probable an answer was to its model, in [0, 1]; None for no token.

    The geometric mean of the token probabilities, which unlike their product does not fall with
    the length. With `quantile` the probability at that quantile of the tokens instead (0: the least
    sure token), which Gupta et al. 2024, "Language Model Cascades: Token-Level Uncertainty and
    Beyond" (arXiv 2404.10136) find better where a few tokens decide.
    """
    values = [value for value in log_probabilities if not math.isnan(value)]
    if not values:
        return None
    if quantile is None:
        return math.exp(math.fsum(max(value, -1e4) for value in values) / len(values))
    ranked = sorted(values)
    place = min(max(quantile, 0.0), 1.0) * (len(ranked) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    lower, upper = max(ranked[low], -1e4), max(ranked[high], -1e4)
    return math.exp(lower + (place - low) * (upper - lower))


def margin(margins: Sequence[float]) -> float | None:
    """Mean margin over the places of an answer, in [0, 1]; None for no place."""
    return math.fsum(margins) / len(margins) if margins else None


def normal_answer(answer: str) -> str:
    """An answer without case, spacing and surrounding punctuation, so that equal ones meet."""
    folded = unicodedata.normalize("NFKC", answer).casefold()
    return " ".join(folded.split()).strip(" .,;:!?\"'`*()[]{}$")


def agreement(
    answers: Sequence[str], normal: Callable[[str], str] = normal_answer
) -> tuple[float | None, int]:
    """Share of samples that give the commonest answer, and the place of the first that does.

    Self-consistency: Wang et al. 2022 (arXiv 2203.11171). The first answer wins ties, so the share
    and the place depend on nothing but the samples. (None, 0) for no sample.

    Args:
        answers: the final answers of several samples of one model.
        normal: what makes equal answers equal.
    """
    if not answers:
        return None, 0
    keys = [normal(answer) for answer in answers]
    counts = Counter(keys)
    most = max(counts.values())
    place = next(at for at, key in enumerate(keys) if counts[key] == most)
    return most / len(keys), place


def verdict(text: str) -> float | None:
    """The score in [0, 1] that a verifier model wrote: "0.8", "8/10", "80%", "yes" or "no".

    The last score in the text counts, because a verifier reasons before it concludes. A bare number
    above 1 has no scale and is not read. None where nothing is found.
    """
    found: list[tuple[int, float]] = []
    rest = text
    for pattern in (SHARE, PERCENT, PLAIN):
        for match in pattern.finditer(rest):
            groups = [float(group) for group in match.groups()]
            scale = groups[1] if pattern is SHARE else 100.0 if pattern is PERCENT else 1.0
            if scale > 0 and groups[0] <= scale:
                found.append((match.start(), groups[0] / scale))
        rest = pattern.sub(lambda match: " " * len(match.group()), rest)
    if found:
        return max(found)[1]
    words = re.findall(r"[a-z]+", text.casefold())
    told = [word for word in words if word in YES or word in NO]
    return None if not told else float(told[-1] in YES)
