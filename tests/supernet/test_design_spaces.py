"""Design spaces: the widths of RegNet by hand, networks within a range of cost, distributions."""

import numpy as np
import pytest

from pointsman.errors import InputError, UnreachableError
from pointsman.supernet.design_spaces import (
    Stages,
    draw_within,
    error_distribution,
    linear_widths,
    regnet,
)


def test_the_smallest_published_regnet_has_its_widths_and_depths() -> None:
    found = regnet(13, 24, 36.44, 2.49, group=8)
    assert found.widths == (24, 56, 152, 368)
    assert found.depths == (1, 1, 4, 7)
    assert found.rising
    assert found.deepening


def test_widths_are_divisible_by_the_group_after_rounding() -> None:
    found = regnet(13, 24, 36.44, 2.49, group=16)
    assert all(width % 16 == 0 for width in found.widths)
    inside = regnet(6, 16, 8, 2.0, bottleneck=2, group=8)
    assert all(width // 2 % 8 == 0 or width // 2 < 8 for width in inside.widths)


def test_stages_that_fall_together_after_rounding_are_one() -> None:
    found = regnet(4, 32, 1, 1.05, group=32)
    assert found == Stages((32,), (4,), 1, 32)


def test_a_flat_line_is_one_stage() -> None:
    assert linear_widths(5, 16, 0, 2.0) == (16,) * 5


def test_networks_are_drawn_within_their_range_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(rng: np.random.Generator) -> Stages:
        return Stages(tuple(int(w) for w in rng.integers(1, 9, size=2)), (1, 1))

    found = draw_within(draw, lambda s: float(sum(s.widths)), (6, 10), 20, np.random.default_rng(0))
    assert len(set(found)) == 20
    assert all(6 <= sum(stages.widths) <= 10 for stages in found)
    monkeypatch.setattr("pointsman.supernet.design_spaces.DRAWS", 2000)
    with pytest.raises(UnreachableError, match="has 1 networks that cost 16 to 16"):
        draw_within(draw, lambda s: float(sum(s.widths)), (16, 16), 2, np.random.default_rng(0))


def test_a_distribution_counts_the_errors_below() -> None:
    found = error_distribution([0.3, 0.1, 0.2, 0.2], [0.05, 0.2, 0.21, 1.0])
    assert found.tolist() == [0.0, 0.25, 0.75, 1.0]
    with pytest.raises(InputError, match="got none"):
        error_distribution([], [0.1])


@pytest.mark.parametrize("numbers", [(0, 8, 1, 2), (3, 4, 1, 2), (3, 8, -1, 2), (3, 8, 1, 1)])
def test_numbers_out_of_range_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="a quantised line"):
        linear_widths(int(numbers[0]), *numbers[1:])
