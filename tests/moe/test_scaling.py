"""The scaling law of routed networks: its limits, and that a fit finds it again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from pointsman.errors import InputError
from pointsman.moe.scaling import RoutedLaw, fit

SINKHORN = RoutedLaw(-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)  # as published, rounded
SIZES, EXPERTS = (
    axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 5), [1, 2, 4, 8, 16, 64, 128, 512])
)


def test_the_published_law_gives_the_published_losses() -> None:
    assert_allclose(SINKHORN.predict(5e6, 1), 3.483, atol=1e-3)
    assert_allclose(SINKHORN.predict(5e6, 128), 2.892, atol=1e-3)
    assert_allclose(SINKHORN.effective_parameters(5e6, 128), 5.2e7, rtol=0.02)


def test_experts_saturate_between_start_and_limit() -> None:
    many = SINKHORN.saturated([1, 2, 8, 100, 1e9])
    assert_allclose(many[[0, -1]], [SINKHORN.start, SINKHORN.limit], rtol=1e-6)
    assert (np.diff(many) > 0).all()


@settings(max_examples=25, deadline=None)
@given(st.floats(1e5, 1e10), st.integers(1, 512))
def test_effective_parameters_have_the_same_loss(size: float, experts: int) -> None:
    effective = SINKHORN.effective_parameters(size, experts)
    assert_allclose(SINKHORN.predict(effective, 1), SINKHORN.predict(size, experts), rtol=1e-9)


def test_beyond_the_cutoff_experts_do_not_help() -> None:
    assert SINKHORN.predict(SINKHORN.cutoff / 2, 64) < SINKHORN.predict(SINKHORN.cutoff / 2, 1)
    assert SINKHORN.predict(SINKHORN.cutoff * 2, 64) > SINKHORN.predict(SINKHORN.cutoff * 2, 1)
    assert RoutedLaw(-0.1, -0.1, 0.0, 1.0, 1.0, 10.0).cutoff == float("inf")


def test_a_fit_finds_a_law_without_noise() -> None:
    found = fit(SIZES, EXPERTS, SINKHORN.predict(SIZES, EXPERTS))
    assert_allclose(found.predict(SIZES, EXPERTS), SINKHORN.predict(SIZES, EXPERTS), rtol=1e-5)
    assert_allclose(found.predict(1e11, 256), SINKHORN.predict(1e11, 256), rtol=1e-3)
    assert_allclose([found.a, found.b, found.c], [-0.082, -0.108, 0.009], atol=2e-3)


def test_a_fit_without_interaction_has_none() -> None:
    found = fit(SIZES, EXPERTS, SINKHORN.predict(SIZES, EXPERTS), interaction=False)
    assert found.c == 0
    ratio = found.predict(SIZES, 8) / found.predict(SIZES, 1)
    assert_allclose(ratio, ratio[0])


@pytest.mark.parametrize(
    ("sizes", "experts", "losses"),
    [
        ([1.0] * 5, [1.0] * 5, [1.0] * 5),
        ([1.0] * 6, [1.0] * 7, [1.0] * 6),
        ([1, 2, 1, 2, 1, 2], [1, 1, 2, 2, 4, 4], [1, 1, 1, 1, 1, np.nan]),
        ([1, 2, 1, 2, 1, 2], [0, 1, 2, 2, 4, 4], [1.0] * 6),
        ([1.0] * 6, [1, 1, 2, 2, 4, 4], [1.0] * 6),
        ([1, 2, 1, 2, 1, 2], [1, 1, 2, 2, 2, 2], [1.0] * 6),
    ],
)
def test_runs_that_fix_no_law_are_refused(
    sizes: list[float], experts: list[float], losses: list[float]
) -> None:
    with pytest.raises(InputError):
        fit(sizes, experts, losses)


def test_a_limit_below_the_start_is_refused() -> None:
    with pytest.raises(InputError, match="start"):
        RoutedLaw(-0.1, -0.1, 0.0, 1.0, 5.0, 4.0)
