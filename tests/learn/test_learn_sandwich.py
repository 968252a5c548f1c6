import pytest
import torch

from pointsman.errors import InputError
from pointsman.learn.sandwich import sandwich


def test_both_ends_are_always_trained_and_one_between_at_random():
    generator = torch.Generator().manual_seed(0)
    drawn = [sandwich([0.5, 1.0, 0.25, 0.75], generator) for _ in range(40)]
    assert all(widths[:2] == [1.0, 0.25] and len(widths) == 3 for widths in drawn)
    assert {widths[2] for widths in drawn} == {0.5, 0.75}


def test_few_widths_are_all_there_is():
    assert sandwich([1.0]) == [1.0]
    assert sandwich([0.5, 1.0], between=3) == [1.0, 0.5]
    assert sorted(sandwich([1.0, 0.5, 0.2, 0.7], between=9)) == [0.2, 0.5, 0.7, 1.0]
    assert sandwich([1.0, 0.5, 0.2], between=0) == [1.0, 0.2]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least one width"):
        sandwich([])
    with pytest.raises(InputError, match="at least 0"):
        sandwich([1.0], between=-1)
