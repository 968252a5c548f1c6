"""Data from files: what is read, and what is refused by name."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.compare.files import LARGE, load
from pointsman.compare.tables import read_table
from pointsman.errors import InputError

FORMATS = ("csv", "parquet")


def written(table: pd.DataFrame, path: Path) -> str:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return str(path)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Saves arrays as an .npz file."""

    def save(**arrays: Any) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return save


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [*FORMATS, "CSV"])
def test_a_table_gives_features_and_classes(suffix: str, make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=120)
    data = load(written(table, tmp_path / f"my data.{suffix}"))
    part = data.given["train"]
    assert (data.name, data.kind, data.columns) == ("my data", "features", tuple(table)[:-1])
    assert data.classes == ("0", "1", "2")
    assert part.x.dtype == np.float32
    assert_allclose(part.x, table.drop(columns="label"), rtol=1e-6)
    assert_array_equal(part.y, table["label"])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["no", "yes", "zürich"], ("no", "yes", "zürich")),
        ([-3, 0, 7], ("-3", "0", "7")),
        ([False, True], ("False", "True")),
        ([0.5, 1.0, 2.0], ("0.5", "1.0", "2.0")),
        (["NA", "None", "null"], ("NA", "None", "null")),
    ],
)
def test_labels_of_any_kind(
    labels: list[Any], classes: tuple[str, ...], suffix: str, make_table: Any, tmp_path: Path
) -> None:
    table = make_table(rows=120)
    values = [labels[i % len(labels)] for i in range(120)]
    data = load(written(table.assign(label=values), tmp_path / f"t.{suffix}"))
    assert data.classes == classes
    assert_array_equal(data.given["train"].y, np.arange(120) % len(labels))


@pytest.mark.parametrize("name", ["label", "Target", "CLASS", "y"])
def test_the_label_column_is_found_by_its_name(name: str, make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=120).rename(columns={"label": name})
    table = table[[name, *(f"f{i}" for i in range(6))]]
    data = load(written(table, tmp_path / "t.csv"))
    assert data.source["target"] == name
    assert name not in data.columns


def test_the_last_column_is_the_label_where_none_is_named(make_table: Any, tmp_path: Path) -> None:
    path = written(make_table(rows=120).rename(columns={"label": "kind"}), tmp_path / "t.csv")
    assert load(path).source["target"] == "kind"
    table = make_table(rows=120).assign(f5=np.arange(120) % 4)
    chosen = load(written(table, tmp_path / "t.csv"), target="f5")
    assert chosen.columns == ("f0", "f1", "f2", "f3", "f4", "label")


def test_columns_keep_names_of_any_script(make_table: Any, tmp_path: Path) -> None:
    names = {"f0": "größe", "f1": "温度", "f2": "a,b", "f3": "prediction", "f4": "[/red]"}
    path = written(make_table(rows=120).rename(columns=names), tmp_path / "ü data.csv")
    assert load(path).columns == ("größe", "温度", "a,b", "prediction", "[/red]", "f5")


def test_a_byte_order_mark_is_no_part_of_a_name(make_table: Any, tmp_path: Path) -> None:
    make_table(rows=120).to_csv(tmp_path / "t.csv", index=False, encoding="utf-8-sig")
    assert load(str(tmp_path / "t.csv")).columns[0] == "f0"


def test_integers_and_bools_are_numbers(make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=120).assign(f0=np.arange(120), f1=np.arange(120) % 2 == 0)
    for suffix in FORMATS:
        x = load(written(table, tmp_path / f"t.{suffix}")).given["train"].x
        assert_array_equal(x[:, 0], np.arange(120))
        assert_array_equal(x[:, 1], np.arange(120) % 2 == 0)


def test_five_thousand_columns_are_read(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 5_000)).round(3)
    table = pd.DataFrame(x, columns=[f"c{i}" for i in range(5_000)])
    data = load(written(table.assign(label=np.arange(100) % 2), tmp_path / "wide.csv"))
    assert_allclose(data.given["train"].x, x, rtol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("cell", "what"),
    [
        (np.nan, "column 'f2' has .* in data row 8 "),
        (np.inf, "column 'f2' has inf in data row 8 .*1 such cells"),
        (-np.inf, "has -inf in data row 8"),
        (1e300, r"up to 3e\+38.* has 1e\+300 in data row 8"),
    ],
)
def test_a_feature_that_is_not_finite_is_named(
    cell: float, what: str, suffix: str, make_table: Any, tmp_path: Path
) -> None:
    table = make_table(rows=120)
    table.loc[7, "f2"] = cell
    with pytest.raises(InputError, match=what):
        load(written(table, tmp_path / f"t.{suffix}"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (["red", "blue"], "has the text 'red' in data row 1 .*encode it as numbers"),
        (["1", "x" * 100], f"has the text '{'x' * 40}' in data row 2 "),
    ],
)
def test_text_where_numbers_are_due_is_named(
    cells: list[str], what: str, suffix: str, make_table: Any, tmp_path: Path
) -> None:
    table = make_table(rows=120).assign(f4=cells * 60)
    with pytest.raises(InputError, match=f"column 'f4' {what}"):
        load(written(table, tmp_path / f"t.{suffix}"))


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        (pd.date_range("2026-01-01", periods=120), "a Timestamp"),
        ([[1, 2]] * 120, "a ndarray"),
        (pd.Categorical(["a", "b"] * 60), "the text 'a'"),
        ([None, {"a": 1}] * 60, "None"),
        (pd.array([None, 1.0] * 60, dtype="Float64"), "<NA>"),
    ],
)
def test_parquet_cells_that_are_no_numbers_are_named(
    cells: Any, what: str, make_table: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"column 'f4' has {what} in data row 1"):
        load(written(make_table(rows=120).assign(f4=cells), tmp_path / "t.parquet"))


@pytest.mark.parametrize("dtype", ["Int64", "string", "float64", "object"])
def test_a_missing_label_is_named(dtype: str, make_table: Any, tmp_path: Path) -> None:
    labels = pd.Series(np.arange(120) % 3).astype(dtype)
    labels[11] = None
    for suffix in FORMATS:
        path = written(make_table(rows=120).assign(label=labels), tmp_path / f"t.{suffix}")
        with pytest.raises(InputError, match=r"'label' has none in data row 12 \(1 such"):
            load(path)


def test_a_number_to_predict_is_no_class(make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=120)
    table["label"] = table["f0"] * 2
    with pytest.raises(InputError, match=r"'label' has 120 distinct values .* --target"):
        load(written(table, tmp_path / "t.csv"))


def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    make_table: Any, tmp_path: Path
) -> None:
    path = written(make_table(rows=120), tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"no column 'f9'; the columns are f0, f1, .*, label"):
        load(path, target="f9")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a table with a header line"),
        ("\n\n", "not a table with a header line"),
        ("a,b,y\n1,2,3\n4,5,6,7,8\n", "as many cells in every row, .*line 3"),
        ("a,b,y\n1,2,3,4\n5,6,7,8\n", "as many cells in every row"),
        ("a,b,a\n1,2,3\n", "names must differ, 'a' is there twice"),
        (",a,y\n0,1,2\n", "column 1 has none .*saved row number"),
        ("y\n1\n2\n", "feature columns beside the label 'y'"),
        ("a;b;y\n1;2;3\n", "separated by commas"),
        ('a,b,y\n1,"2,3\n', "t.csv: "),
    ],
)
def test_a_file_that_is_no_table_is_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=what) as refusal:
        load(str(tmp_path / "t.csv"))
    assert "\n" not in str(refusal.value)


def test_a_table_that_is_not_utf8_is_refused(make_table: Any, tmp_path: Path) -> None:
    table = make_table(rows=120).rename(columns={"f0": "größe"})
    table.to_csv(tmp_path / "t.csv", index=False, encoding="latin-1")
    with pytest.raises(InputError, match=r"read as UTF-8, which this is not"):
        load(str(tmp_path / "t.csv"))


def test_equal_names_in_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    column = pa.array([1.0, 2.0])
    parquet.write_table(pa.table([column] * 3, names=["a", "a", "y"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"names must differ, 'a'"):
        load(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PK\x03\x04garbage", b"\x00" * 4_000])
def test_a_file_of_another_format_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"t.{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.\w+: cannot be read as"):
        load(str(tmp_path / f"t.{suffix}"))


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("nothing.csv", "nothing.csv: there is no such file"),
        ("nothing", "neither a built-in data set .*digits, mnist1d, text, known-routes"),
        ("data.xlsx", r"nor a .csv, .parquet or .npz file"),
        ("", "neither a built-in data set"),
    ],
)
def test_a_source_that_is_not_there_is_refused(source: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        load(source)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(InputError, match=r"no such file"):
        load(str(tmp_path / "t.csv"))


def test_a_built_in_set_has_its_own_labels() -> None:
    with pytest.raises(InputError, match=r"built in and has its own labels"):
        load("digits", target="pixel_0_0")


# ── samples and large files ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [*FORMATS, "npz"])
def test_a_sample_is_uniform_and_the_same_every_time(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.tables.ROWS_AT_ONCE", 700)
    table = pd.DataFrame({"f": np.arange(3_000), "label": np.arange(3_000) % 2})
    path = tmp_path / f"t.{suffix}"
    if suffix == "npz":
        np.savez(path, x_train=table[["f"]].to_numpy(), y_train=table["label"].to_numpy())
    else:
        written(table, path)
    drawn = []
    for seed in range(20):
        data = load(str(path), rows=300, seed=seed)
        rows = data.given["train"].x[:, 0]
        assert len(np.unique(rows)) == 300
        assert_array_equal(data.given["train"].y, rows % 2)
        assert_array_equal(rows, np.sort(rows))
        drawn.append(rows)
    assert_array_equal(drawn[3], load(str(path), rows=300, seed=3).given["train"].x[:, 0])
    assert not np.array_equal(drawn[0], drawn[1])
    # 6,000 draws over 10 tenths of the file: 600 each, give or take six standard deviations
    shares = np.histogram(np.concatenate(drawn), bins=10, range=(0, 3_000))[0]
    assert np.abs(shares - 600).max() < 6 * np.sqrt(600 * 0.9 * 0.9)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_sample_of_arrays_takes_whole_rows(
    order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.arrays.BYTES_AT_ONCE", 1_000)
    x = np.random.default_rng(0).integers(0, 255, (500, 3, 4)).astype(np.uint8)
    y = x[:, 1, 2] % 2
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / "t.npz"
        save(path, x_train=np.asarray(x, order=order), y_train=y, x_test=x[:7], y_test=y[:7])
        data = load(str(path), rows=130)
        train, test = data.given["train"], data.given["test"]
        assert_array_equal(train.y, train.x[:, 1, 2, 0] % 2)
        whole = {row.tobytes() for row in x}
        assert {row.tobytes() for row in train.x} <= whole
        assert len(train) == 130
        assert_array_equal(test.x[..., 0], x[:7])
    np.savez(path, x_train=x, y_train=y[:-1])
    with pytest.raises(InputError, match=r"equally long, got 500 and 499"):
        load(str(path), rows=130)


def test_a_sample_of_more_rows_than_there_are_is_all_of_them(
    make_table: Any, tmp_path: Path
) -> None:
    path = written(make_table(rows=120), tmp_path / "t.csv")
    assert load(path, rows=10_000).fingerprint() == load(path).fingerprint()
    assert load(path, rows=50).source == load(path).source
    assert len(load("digits", rows=200).given["train"]) == 200


@pytest.mark.parametrize("rows", [0, -4])
def test_a_sample_of_no_rows_is_refused(rows: int) -> None:
    with pytest.raises(InputError, match=f"--rows takes a number of at least 1, got {rows}"):
        load("digits", rows=rows)


@pytest.mark.parametrize("suffix", ["csv", "CSV", "parquet", "npz"])
def test_a_large_file_is_not_read_unasked(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t.{suffix}"
    with path.open("wb") as file:
        file.truncate(2 * LARGE)
    minutes = "0.6" if suffix.lower() == "csv" else "0.5"
    what = rf"2\.0 GiB: .* 5 GiB of memory and {minutes} minutes .*--rows 100000 .*--large"
    with pytest.raises(InputError, match=what):
        load(str(path))


# ── arrays ──────────────────────────────────────────────────────────────────────────────────────


def test_arrays_give_features_with_a_test_part_of_their_own(saved: Any) -> None:
    x = np.random.default_rng(0).normal(size=(120, 5))
    y = np.array(["a", "b", "c"] * 40)
    data = load(saved(x_train=x, y_train=y, x_test=x[:9] + 1, y_test=y[:9]))
    assert (data.kind, data.classes) == ("features", ("a", "b", "c"))
    assert_allclose(data.given["test"].x, x[:9] + 1, rtol=1e-6)
    assert_array_equal(data.given["test"].y, np.arange(9) % 3)


def test_a_class_of_the_test_part_alone_is_refused(saved: Any) -> None:
    from pointsman.compare.data import split

    x, y = np.zeros((200, 2)), np.arange(200) % 2
    data = load(saved(x_train=x, y_train=y, x_test=x[:3], y_test=np.array([0, 1, 5])))
    with pytest.raises(InputError, match=r"class '5' has 0"):
        split(data, seed=0)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([True, False] * 60), ("False", "True")),
        (np.array([-1, 5] * 60, np.int8), ("-1", "5")),
        (np.array([b"cat", b"dog"] * 60), ("cat", "dog")),
        (np.array([[0], [1]] * 60), ("0", "1")),
    ],
)
def test_array_labels_of_any_kind(labels: Any, classes: tuple[str, ...], saved: Any) -> None:
    assert load(saved(x_train=np.zeros((120, 2)), y_train=labels)).classes == classes


def test_class_names_may_come_with_the_arrays(saved: Any) -> None:
    x, y = np.zeros((120, 2)), np.arange(120) % 2
    assert load(saved(x_train=x, y_train=y, classes=["ja", "nein"])).classes == ("ja", "nein")
    assert load(saved(x_train=x, y_train=y + 1, classes=["ja", "nein"])).classes == ("1", "2")
    for other in (["ja", "ja"], "ja", ["ja", "nein", "?"]):
        assert load(saved(x_train=x, y_train=y, classes=other)).classes == ("0", "1")


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("side", [1, 4, 8])
def test_bytes_of_three_or_four_dimensions_are_images(
    channels: int, side: int, saved: Any, make_images: Any
) -> None:
    x, y = make_images(side=side, channels=channels)
    data = load(saved(x_train=x, y_train=y))
    assert data.kind == "images"
    assert data.example_shape() == (side, side, channels or 1)
    assert_array_equal(data.given["train"].x.reshape(x.shape), x)


def test_bytes_of_two_dimensions_are_features(saved: Any) -> None:
    x = np.arange(240, dtype=np.uint8).reshape(120, 2)
    data = load(saved(x_train=x, y_train=np.arange(120) % 2))
    assert data.kind == "features"
    assert_array_equal(data.given["train"].x, x)


def good(**changes: Any) -> dict[str, Any]:
    arrays = {"x_train": np.zeros((120, 2)), "y_train": np.arange(120) % 2}
    return {name: a for name, a in {**arrays, **changes}.items() if a is not None}


def holed(value: float) -> Any:
    x = np.zeros((120, 2))
    x[5, 1] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        (good(y_train=np.zeros(119)), "equally long, got 120 and 119"),
        (good(y_train=None), "y_train is not there; it has x_train"),
        (good(x_train=None, x=np.zeros(3)), "x_train is not there; it has y_train, x"),
        (good(x_test=np.zeros((3, 2))), "x_test and y_test belong together"),
        (good(x_test=np.zeros((3, 4)), y_test=np.zeros(3)), "x_test must have the shape"),
        (good(x_train=holed(np.nan)), "x_train has nan in row 5, column 1"),
        (good(x_train=holed(-np.inf)), "x_train has -inf in row 5, column 1"),
        (good(x_train=holed(1e39)), r"up to 3e\+38.* x_train has 1e\+39 in row 5"),
        (good(x_train=np.zeros(120)), "numbers of shape"),
        (good(x_train=np.zeros((120, 0))), "numbers of shape"),
        (good(x_train=np.zeros((120, 2), complex)), "got complex128 of shape"),
        (good(x_train=np.full((120, 2), "a")), "got <U1 of shape"),
        (good(x_train=np.zeros((120, 4, 4, 3))), "uint8 images .* got float64 of shape"),
        (good(x_train=np.zeros((120, 3, 32, 32), np.uint8)), "NHWC .*x_train has shape"),
        (good(x_train=np.zeros((120, 0, 8), np.uint8)), "NHWC .*x_train has shape"),
        (good(y_train=np.where(np.arange(120) == 3, np.nan, 1)), "none in data row 4"),
        (good(y_train=np.linspace(0, 1, 120)), "120 distinct values"),
        (good(x_train=np.array([{}, []] * 60, dtype=object)), "plain arrays .*allow_pickle"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], what: str, saved: Any) -> None:
    with pytest.raises(InputError, match=what):
        load(saved(**arrays))


def test_pickled_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "t.npz", x_train=np.array([Bomb()], dtype=object), y_train=np.zeros(1))
    with pytest.raises(InputError, match=r"plain arrays"):
        load(str(tmp_path / "t.npz"))
    assert not (tmp_path / "exploded").exists()


def test_a_single_array_or_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"cannot be read as an .npz file"):
        load(str(path))
    np.savez_compressed(path, x_train=np.random.default_rng(0).normal(size=(120, 9)))
    content = bytearray(path.read_bytes())
    content[300:340] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as an .npz file"):
        load(str(path))


def test_what_is_no_array_in_an_archive_is_left_aside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("x_train", b"not an array")
    with pytest.raises(InputError, match=r"x_train is not there; it has nothing"):
        load(str(tmp_path / "t.npz"))


def test_a_header_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    description = {"descr": "<f8", "fortran_order": False, "shape": (10**14, 8)}
    np.lib.format.write_array_header_1_0(header, description)
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
    with pytest.raises(InputError, match=r"cannot be read as an .npz file"):
        load(str(tmp_path / "t.npz"))


@pytest.mark.parametrize("rows", [None, 5])
def test_a_table_of_no_rows_is_an_empty_table(rows: int | None, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a, b,y\n")
    pd.DataFrame({"a": [], "b": []}).to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.csv", rows)) == ["a", "b", "y"]
    assert read_table(tmp_path / "t.csv", rows).shape == (0, 3)
    assert read_table(tmp_path / "t.parquet", rows).shape == (0, 2)
    pd.DataFrame(index=range(3)).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"header line, it has no columns"):
        read_table(tmp_path / "t.parquet", rows)


def test_a_saved_index_is_no_feature(make_table: Any, tmp_path: Path) -> None:
    make_table(rows=120).set_index("f0").to_parquet(tmp_path / "t.parquet")
    assert load(str(tmp_path / "t.parquet")).columns == ("f1", "f2", "f3", "f4", "f5")
