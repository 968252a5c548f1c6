"""Money that adds up, and the periods in which it is counted.

Inside the store every amount is a whole number of nano-dollars, so that sums are exact whatever
their order; outside it is US$. A price per million tokens with up to three decimals is a whole
number of nano-dollars per token.
"""

import math
import time
from decimal import Decimal
from functools import lru_cache
from typing import Literal, get_args

from pointsman.errors import InputError

NANO = 1_000_000_000
LARGEST = 1_000_000  # US$ in one amount: far below what 64 bits hold, so that sums stay inside

Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = get_args(Period)


def nano(dollars: float | Decimal, what: str = "an amount") -> int:
    """US$ as the nearest whole number of nano-dollars.

    Raises:
        InputError: not a finite number from 0 to `LARGEST`.
    """
    if not (math.isfinite(dollars) and 0 <= dollars <= LARGEST):
        raise InputError(f"{what} must be US$ from 0 to {LARGEST:,}, got {dollars}")
    return round(dollars * NANO)


def dollars(amount: int) -> float:
    """Nano-dollars as US$."""
    return amount / NANO


def in_words(amount: int) -> str:
    """Nano-dollars as US$ with all their decimals, and at least two."""
    whole, rest = divmod(abs(amount), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole:,}.{decimals}"


def period_label(period: Period, now: float) -> str:
    """The period that a moment (seconds since 1970) falls into, by the calendar in UTC.

    "2026-11-21" for a day, "2026-11" for a month, "total" for ever.
    """
    if period == "total":
        return "total"
    day = _day(int(now // 86400))
    return day if period == "day" else day[:7]


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(number * 86400))
