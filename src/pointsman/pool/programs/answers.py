"""When two answers are the same: texts are compared as people would read them."""

import re
import unicodedata

LEAD = re.compile(r"^(?:(?:so|thus|therefore)[, ]+)?(?:the )?(?:final )?answer(?: is|:)\s*")
NUMBER = re.compile(r"^[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$|^[-+]?(?:\d+\.?\d*|\.\d+)$")
AROUND = " \t\n.,;:!?\"'`*()[]$"


def same_answer(text: str) -> str:
    """One form for all texts that give the same answer.

    Case, spaces, a leading "the answer is", and punctuation around are dropped; numbers lose
    thousands separators, a plus and trailing zeros. "The answer is 1,200.0." and "1200" are one
    answer; "-5" and "5" are two.

    Args:
        text: an answer, short or with its lead.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    plain = LEAD.sub("", plain).strip(AROUND)
    if not NUMBER.match(plain):
        return plain
    digits = plain.replace(",", "").removeprefix("+")
    sign, digits = ("-", digits[1:]) if digits.startswith("-") else ("", digits)
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    number = f"{whole}.{part}" if part else whole
    return number if number == "0" else sign + number
