"""From a signal to an expected quality."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pointsman.errors import InputError
from pointsman.pool.deferral import Logistic, Monotone

each = pytest.mark.parametrize("kind", [Monotone, Logistic])
cells = st.one_of(st.floats(-5, 5), st.just(np.nan))


def drawn(n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=n)
    chance = 1 / (1 + np.exp(-1.5 * signal - 0.3))
    return signal, (rng.random(n) < chance).astype(float), chance


@each
def test_the_chance_behind_a_signal_is_found(kind: type) -> None:
    signal, right, chance = drawn()
    found = kind().fit(signal, right).predict(signal)
    assert np.abs(found - chance).mean() < 0.03


@each
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40).flatmap(
        lambda n: st.tuples(
            arrays(float, n, elements=cells),
            arrays(float, n, elements=st.one_of(st.floats(0, 1), st.just(np.nan))),
        )
    )
)
def test_anything_gives_qualities_in_range_and_missing_is_the_least_sure(
    kind: type, made: tuple[np.ndarray, np.ndarray]
) -> None:
    signal, quality = made
    part = kind().fit(signal, quality)
    asked = np.array([np.nan, -9.0, 0.0, 9.0, *signal])
    found = part.predict(asked)
    if not (np.isfinite(signal) & np.isfinite(quality)).any():
        assert np.isnan(found).all()
        return
    assert ((found >= -1e-9) & (found <= 1 + 1e-9)).all()
    seen = signal[np.isfinite(signal) & np.isfinite(quality)]
    assert found[0] <= part.predict(seen).min() + 1e-9


@settings(max_examples=60, deadline=None)
@given(arrays(float, 50, elements=st.floats(-3, 3)), arrays(float, 50, elements=st.floats(0, 1)))
def test_a_surer_signal_never_gives_a_lower_quality(
    signal: np.ndarray, quality: np.ndarray
) -> None:
    found = Monotone(least=3).fit(signal, quality).predict(np.linspace(-4, 4, 200))
    assert (np.diff(found) >= -1e-12).all()


@each
def test_the_order_of_the_rows_changes_nothing(kind: type) -> None:
    signal, right, _ = drawn(300)
    signal = np.round(signal, 1)
    order = np.random.default_rng(1).permutation(300)
    at = np.linspace(-2, 2, 40)
    first = kind().fit(signal, right).predict(at)
    second = kind().fit(signal[order], right[order]).predict(at)
    assert first == pytest.approx(second, abs=1e-9)


@each
def test_kept_and_brought_back_it_says_the_same_to_the_last_bit(kind: type) -> None:
    signal, right, _ = drawn(500)
    part = kind().fit(signal, right)
    again = kind.from_state(*part.to_state())
    assert (part.predict(signal) == again.predict(signal)).all()


def test_few_answers_are_no_certainty() -> None:
    found = Monotone(least=10).fit(np.arange(30.0), np.arange(30) >= 29).predict([0.0, 29.0])
    assert found[1] <= 0.2


def test_a_misleading_signal_is_read_the_other_way_round_by_the_curve_only() -> None:
    signal, right, _ = drawn()
    assert Logistic().fit(-signal, right).slope_ < -1
    flat = Monotone().fit(-signal, right)
    assert np.ptp(flat.predict(signal)) < 0.02


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(answers,\) each, got \(3,\) and \(4,\)"):
        Monotone().fit(np.zeros(3), np.zeros(4))
