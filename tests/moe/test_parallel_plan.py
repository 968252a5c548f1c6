"""Lines fitted from times, and the book of the quickest plan by load."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pointsman.errors import InputError
from pointsman.moe.parallel import Line, PlanBook, fit_line


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 1e-2), st.floats(1e-10, 1e-5))
def test_a_line_is_found_again(alpha: float, beta: float) -> None:
    sizes = np.geomspace(10, 1e6, 8).tolist()
    line = fit_line(sizes, [alpha + beta * size for size in sizes])
    assert_allclose([line.seconds(size) for size in sizes], alpha + beta * np.array(sizes))


def test_a_fit_never_goes_below_zero() -> None:
    falling = fit_line([1, 2, 3], [3.0, 2.0, 1.0])
    assert falling.beta == 0
    assert falling.alpha > 0
    steep = fit_line([1, 2, 3], [0.1, 2.0, 6.0])
    assert steep.alpha == 0


def test_what_fits_into_a_time_takes_that_time() -> None:
    line = Line(1.0, 0.5)
    assert line.fits(2.0) == 2.0
    assert line.seconds(line.fits(2.0)) == 2.0
    assert line.fits(1.0) == line.fits(0.5) == 0.0
    assert Line(1.0, 0.0).fits(2.0) == float("inf")
    assert line.times(2) == Line(2.0, 1.0)


@pytest.mark.parametrize(
    ("sizes", "seconds"), [([1], [1.0]), ([2, 2], [1.0, 1.0]), ([1, 2], [0.0, 1.0]), ([1, 2], [1])]
)
def test_too_little_to_fit_is_refused(sizes: list[float], seconds: list[float]) -> None:
    with pytest.raises(InputError):
        fit_line(sizes, seconds)


def test_a_line_that_pays_is_refused() -> None:
    with pytest.raises(InputError, match="alpha and beta of at least 0, got -1"):
        Line(-1.0, 0.0)


def test_each_plan_is_tried_once_in_each_bucket_then_the_quickest_runs() -> None:
    book = PlanBook(["a", "b", "c"])
    quickest = {100: "b", 10_000: "c"}
    for load, best in quickest.items():
        tried = []
        for _ in range(3):
            plan = book.pick(load)
            tried.append(plan)
            book.record(load, plan, 1.0 if plan == best else 2.0)
        assert sorted(tried) == ["a", "b", "c"]
    for load, best in quickest.items():
        assert book.pick(load * 1.05) == best  # the same bucket
    assert book.pick(1) == "a"  # a bucket of its own, untried


def test_a_mean_decides_and_one_lucky_time_does_not() -> None:
    book = PlanBook([1, 2])
    for plan, seconds in [(1, 1.0), (1, 5.0), (2, 2.0)]:
        book.record(8, plan, seconds)
    assert book.best(8) == 2


def test_a_model_orders_the_trials_and_leaves_out_what_is_hopeless() -> None:
    book = PlanBook([1, 2, 4], expected=lambda plan, load: abs(plan - 2) + 1.0, patience=2.5)
    assert book.pick(5) == 2
    book.record(5, 2, 10.0)
    assert book.pick(5) == 1
    book.record(5, 1, 11.0)
    assert book.pick(5) == 2  # 4 is three times the best expected, and is never tried
    assert book.best(1e6) == 2


def test_misuse_of_a_book_is_refused() -> None:
    with pytest.raises(InputError, match="at least one plan"):
        PlanBook([])
    book = PlanBook(["a"])
    with pytest.raises(InputError, match=r"the book has \['a'\], got 'b'"):
        book.record(1, "b", 1.0)
    with pytest.raises(InputError, match="a load is finite"):
        book.pick(float("nan"))
