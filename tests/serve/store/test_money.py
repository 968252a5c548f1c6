"""Amounts that add up, and periods by the calendar."""

import calendar
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.errors import InputError
from pointsman.serve.store.money import dollars, in_words, nano, period_label


@given(st.integers(min_value=0, max_value=10**15))
def test_an_amount_survives_the_way_out_and_in(amount: int) -> None:
    assert nano(dollars(amount)) == amount


def test_sums_are_exact_in_any_order() -> None:
    rng = random.Random(0)
    amounts = [rng.randrange(10**6) for _ in range(10_000)]
    assert sum(nano(amount / 1e9) for amount in amounts) == sum(amounts)


def test_the_nearest_nano_dollar_is_taken() -> None:
    assert nano(0.57) == 570_000_000
    assert nano(1.4e-9) == 1
    assert nano(Decimal("0.1")) == 100_000_000


@pytest.mark.parametrize("amount", [-1e-9, float("nan"), float("inf"), 1_000_001])
def test_what_is_no_amount_is_refused(amount: float) -> None:
    with pytest.raises(InputError, match="a price must be US"):
        nano(amount, "a price")


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (1_500_000_000, "1.50"),
        (1_234_567_000_000_000, "1,234,567.00"),
        (-250_000_000, "-0.25"),
    ],
)
def test_amounts_are_written_with_all_their_decimals(amount: int, words: str) -> None:
    assert in_words(amount) == words


@pytest.mark.parametrize(
    ("moment", "day", "month"),
    [
        ((2026, 11, 30, 23, 59, 59), "2026-11-30", "2026-11"),
        ((2026, 12, 1, 0, 0, 0), "2026-12-01", "2026-12"),
        ((2028, 2, 29, 12, 0, 0), "2028-02-29", "2028-02"),
        ((2027, 1, 1, 0, 0, 0), "2027-01-01", "2027-01"),
    ],
)
def test_periods_follow_the_calendar_in_utc(
    moment: tuple[int, ...], day: str, month: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    now = float(calendar.timegm(moment))
    assert period_label("day", now + 0.9) == day
    assert period_label("month", now + 0.9) == month
    assert period_label("total", now) == "total"
