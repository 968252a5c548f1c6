"""New inputs for a saved policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.compare.inputs import read_inputs
from pointsman.errors import InputError

TABLE = {"kind": "features", "shape": [3], "columns": ["a", "b", "c"]}
ARRAY = {"kind": "features", "shape": [3], "columns": []}
IMAGES = {"kind": "images", "shape": [4, 4, 1], "columns": []}
TEXT = {"kind": "text", "shape": [9], "columns": []}


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "in.npz", **arrays)
    return str(folder / "in.npz")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_are_found_by_name_in_any_order(suffix: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"c": [3.0], "more": ["x"], "a": [1], "b": [2.0]})
    path = tmp_path / f"in.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    assert_array_equal(read_inputs(str(path), TABLE), [[1, 2, 3]])


def test_a_table_of_no_rows_gives_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a,b,c\n")
    assert read_inputs(str(tmp_path / "in.csv"), TABLE).shape == (0, 3)


@pytest.mark.parametrize("name", ["x", "x_test", "x_train"])
def test_arrays_are_found_by_name(name: str, tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(2, 3)
    found = read_inputs(npz(tmp_path, **{name: x, "y_train": np.zeros(9)}), ARRAY)
    assert_allclose(found, x)


def test_grey_images_need_no_channel(tmp_path: Path) -> None:
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    assert read_inputs(npz(tmp_path, x=x), IMAGES).shape == (2, 4, 4, 1)


def test_text_is_cut_into_windows(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(bytes(range(27)))
    windows = read_inputs(str(tmp_path / "in.txt"), TEXT)
    assert_array_equal(windows[:, :-1], np.arange(24).reshape(3, 8))
    assert windows.shape == (3, 9)


def test_a_built_in_set_gives_its_inputs() -> None:
    made_for = {"kind": "features", "shape": [64], "columns": []}
    assert read_inputs("digits", made_for).shape == (1_797, 64)
    with pytest.raises(InputError, match=r"takes images of shape \(n, 4, 4, 1\), got features"):
        read_inputs("digits", IMAGES)


@pytest.mark.parametrize(
    ("content", "made_for", "what"),
    [
        ("a,b\n1,2\n", TABLE, r"takes 3 columns, 'c' is missing \(1 such"),
        ("x\n1\n", TABLE, r"'a' is missing \(3 such"),
        ("a,b,c\n1,2,3\n", ARRAY, "knows no columns: give an .npz file"),
        ("a,b,c\n1,2,3\n", IMAGES, r"takes images of shape \(n, 4, 4, 1\) and knows no columns"),
        ("a,b,c\n1,,3\n", TABLE, "column 'b' has nan in data row 1"),
        ("a,b,c\n1,red,3\n", TABLE, "column 'b' has the text 'red' in data row 1"),
        ("", TABLE, "not a table"),
    ],
)
def test_tables_of_another_make_are_refused(
    content: str, made_for: dict[str, Any], what: str, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(InputError, match=what):
        read_inputs(str(tmp_path / "in.csv"), made_for)


@pytest.mark.parametrize(
    ("arrays", "made_for", "what"),
    [
        ({"x": np.zeros((2, 4))}, ARRAY, r"shape \(n, 3\), got features of shape \(2, 4\)"),
        ({"x": np.zeros((2, 3))}, IMAGES, "takes images .*got features"),
        ({"x": np.zeros((2, 5, 4), np.uint8)}, IMAGES, r"got images of shape \(2, 5, 4, 1\)"),
        ({"x": np.full((2, 3), np.nan)}, ARRAY, "x has nan in row 0, column 0"),
        ({"z": np.zeros((2, 3))}, ARRAY, "there is no array x, it has z"),
    ],
)
def test_arrays_of_another_make_are_refused(
    arrays: dict[str, Any], made_for: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=what):
        read_inputs(npz(tmp_path, **arrays), made_for)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.csv: there is no such file"):
        read_inputs(str(tmp_path / "gone.csv"), TABLE)
    (tmp_path / "in.txt").write_bytes(b"short")
    with pytest.raises(InputError, match=r"windows of 8 bytes, the file has only 5"):
        read_inputs(str(tmp_path / "in.txt"), TEXT)
    with pytest.raises(InputError, match=r"cannot be read as an .npz file"):
        read_inputs(str(tmp_path / "in.txt"), ARRAY)
