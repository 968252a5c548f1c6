"""The data sets that are always there."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pointsman.compare import builtin
from pointsman.compare.data import Dataset, split


def same(one: Dataset, other: Dataset) -> bool:
    return one.fingerprint() == other.fingerprint()


def test_digits_are_all_there() -> None:
    data = builtin.digits()
    assert data.given["train"].x.shape == (1_797, 64)
    assert data.classes == tuple("0123456789")
    assert len(data.columns) == 64


def test_generated_sets_depend_on_their_seed_alone() -> None:
    for make in (builtin.mnist1d, builtin.known_routes):
        assert same(make(rows=300), make(rows=300))
        assert not same(make(rows=300), make(rows=300, seed=1))


def test_mnist1d_holds_every_digit_equally_often() -> None:
    data = builtin.mnist1d(rows=500, length=40)
    part = data.given["train"]
    assert part.x.shape == (500, 40)
    assert part.x.dtype == np.float32
    assert np.isfinite(part.x).all()
    assert_array_equal(np.bincount(part.y), np.full(10, 50))


def test_mnist1d_can_be_learned_but_not_by_a_line() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    part = builtin.mnist1d(rows=3_000).given["train"]
    line = LogisticRegression(max_iter=200).fit(part.x[:2_500], part.y[:2_500])
    near = KNeighborsClassifier(3).fit(part.x[:2_500], part.y[:2_500])
    by_line, by_neighbours = (m.score(part.x[2_500:], part.y[2_500:]) for m in (line, near))
    assert 0.15 < by_line < by_neighbours < 0.95


def test_known_routes_follow_their_rule() -> None:
    data = builtin.known_routes(rows=2_000)
    part = data.given["train"]
    group, x = part.x[:, 0], part.x[:, 1:]
    expected = np.where(group > 0, x[:, 2] * x[:, 3] * x[:, 4] > 0, x[:, 0] + x[:, 1] > 0)
    assert_array_equal(part.y, expected)
    assert_array_equal(part.group, group > 0)
    assert set(np.unique(group)) == {-1.0, 1.0}
    assert abs(np.mean(group > 0) - 0.3) < 0.04
    assert data.columns[0] == "group"
    assert len(data.columns) == part.x.shape[1]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty source files of one letter each, and one that is not the library's own."""
    for i in range(20):
        folder = tmp_path / ("package" if i % 2 else ".")
        folder.mkdir(exist_ok=True)
        (folder / f"m{i:02}.py").write_bytes(bytes([65 + i]) * 5_000)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "foreign.py").write_bytes(b"!" * 5_000)
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


def test_text_trains_on_other_files_than_it_tests_on(library: Path) -> None:
    data = builtin.text()
    letters = {name: set(np.unique(part.x)) - {10} for name, part in data.given.items()}
    held_out = letters["validation"] | letters["calibration"] | letters["test"]
    assert letters["train"].isdisjoint(held_out)
    assert len(held_out) == 4  # a fifth of the files
    assert len(letters["train"]) == 16
    assert ord("!") not in letters["train"] | held_out


def test_text_windows_have_the_context_and_the_byte_after(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"train": 120, "validation": 7, "calibration": 11, "test": 13}
    monkeypatch.setattr(builtin, "TEXT_WINDOWS", counts)
    data = builtin.text()
    for name, part in data.given.items():
        assert part.x.shape == (counts[name], builtin.CONTEXT + 1)
        assert part.x.dtype == np.uint8
        assert not part.y.any()
    assert {name: len(part) for name, part in split(data, 0).items()} == counts
    assert same(data, builtin.text())
    assert not same(data, builtin.text(seed=1))
