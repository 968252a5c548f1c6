"""`pointsman predict`: a saved policy on new inputs."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pointsman.compare import load, load_policy
from pointsman.compare.data import split


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def policy(own_run: Path) -> Path:
    return own_run / "run" / "policy"


def test_every_row_gets_a_prediction_a_branch_and_a_cost(
    finished_run: Path, pointsman: Callable[..., Any]
) -> None:
    ran = pointsman("predict", finished_run / "run" / "policy", finished_run / "data.csv")
    assert (ran.code, ran.err) == (0, "")
    rows = rows_of(ran.out)
    assert list(rows[0]) == ["prediction", "confidence", "branch", "cost_MFLOPs"]
    labels = pd.read_csv(finished_run / "data.csv")["label"].astype(str)
    assert len(rows) == len(labels)
    right = np.mean([row["prediction"] == label for row, label in zip(rows, labels, strict=True)])
    assert right > 0.4
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)
    names = load_policy(finished_run / "run" / "policy").stage_names
    assert {row["branch"] for row in rows} <= set(names)
    assert all(float(row["cost_MFLOPs"]) > 0 for row in rows)


def test_predictions_agree_with_the_results(
    finished_run: Path, tmp_path: Path, pointsman: Callable[..., Any]
) -> None:
    data = load(str(finished_run / "data.csv"))
    test = split(data, seed=0)["test"]
    frame = pd.DataFrame(test.x, columns=list(data.columns))
    frame.to_parquet(tmp_path / "test.parquet")
    ran = pointsman("predict", finished_run / "run" / "policy", tmp_path / "test.parquet")
    rows = rows_of(ran.out)
    pick = json.loads((finished_run / "run" / "results.json").read_text())["pick"]
    found = np.array([int(row["prediction"]) for row in rows])
    assert np.mean(found == test.y) == pytest.approx(pick["quality"])
    cost = np.mean([float(row["cost_MFLOPs"]) for row in rows])
    assert cost == pytest.approx(pick["cost"], rel=1e-4)


def test_a_fresh_process_predicts_the_same(
    finished_run: Path, pointsman: Callable[..., Any]
) -> None:
    words = ["predict", str(finished_run / "run" / "policy"), str(finished_run / "data.csv")]
    code = "from pointsman.cli.main import main; main()"
    fresh = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
    )
    assert fresh.stdout == pointsman(*words).out


def test_out_writes_a_file_whole(
    finished_run: Path, tmp_path: Path, pointsman: Callable[..., Any]
) -> None:
    words = ["predict", finished_run / "run" / "policy", finished_run / "data.csv"]
    ran = pointsman(*words, "--out", tmp_path / "p.csv")
    assert ran.code == 0
    assert ran.out == ""
    assert "400 predictions, " in ran.err
    assert (tmp_path / "p.csv").read_text() == pointsman(*words).out
    assert list(tmp_path.iterdir()) == [tmp_path / "p.csv"]


def test_out_may_be_the_standard_output_of_a_pipe(finished_run: Path, tmp_path: Path) -> None:
    if not Path("/dev/stdout").exists():
        pytest.skip("there is no /dev/stdout here")
    (tmp_path / "one.csv").write_text("f0,f1,f2,f3,f4,f5\n1,2,3,4,5,6\n")
    words = ["predict", str(finished_run / "run" / "policy"), str(tmp_path / "one.csv")]
    code = "from pointsman.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", "/dev/stdout"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith("prediction,confidence,branch,cost_MFLOPs\n")
    assert Path("/dev/stdout").is_symlink()


def test_no_rows_give_no_predictions(
    finished_run: Path, tmp_path: Path, pointsman: Callable[..., Any]
) -> None:
    (tmp_path / "none.csv").write_text("f0,f1,f2,f3,f4,f5\n")
    ran = pointsman("predict", finished_run / "run" / "policy", tmp_path / "none.csv")
    assert (ran.code, ran.out) == (0, "prediction,confidence,branch,cost_MFLOPs\n")


def test_classes_keep_names_that_need_quotes(
    own_run: Path, tmp_path: Path, pointsman: Callable[..., Any], quick: None
) -> None:
    frame = pd.read_csv(own_run / "data.csv")
    names = np.array(["größe, klein", 'so "gross"', "=1+1"])
    frame["label"] = names[frame["label"]]
    frame.to_csv(tmp_path / "named.csv", index=False)
    assert pointsman("compare", tmp_path / "named.csv", "--out", tmp_path / "run").code == 0
    ran = pointsman("predict", tmp_path / "run" / "policy", tmp_path / "named.csv")
    assert {row["prediction"] for row in rows_of(ran.out)} <= set(names)


def test_text_predicts_the_byte_that_follows(
    tmp_path: Path,
    pointsman: Callable[..., Any],
    refused: Callable[..., str],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pointsman.compare.builtin.CONTEXT", 8)
    windows = {"train": 100, "validation": 10, "calibration": 10, "test": 10}
    monkeypatch.setattr("pointsman.compare.builtin.TEXT_WINDOWS", windows)
    assert pointsman("compare", "text", "--ways", "nested", "--out", tmp_path / "run").code == 0
    (tmp_path / "new.txt").write_text("def f(x):\n    return x\n")
    ran = pointsman("predict", tmp_path / "run" / "policy", tmp_path / "new.txt")
    rows = rows_of(ran.out)
    assert len(rows) == 2
    assert all(0 <= int(row["prediction"]) < 256 for row in rows)
    assert "cost_MFLOPs_per_token" in rows[0]
    (tmp_path / "short.txt").write_text("def")
    line = refused("predict", tmp_path / "run" / "policy", tmp_path / "short.txt")
    assert "windows of 8 bytes, the file has only 3" in line


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
def test_a_damaged_policy_is_refused(name: str, policy: Path, refused: Callable[..., str]) -> None:
    content = (policy / name).read_bytes()
    for at in (0, 9, len(content) // 2, len(content) - 1):
        (policy / name).write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        assert str(policy) in refused("predict", policy, policy.parent.parent / "data.csv")


def test_policies_that_cannot_be_read_are_refused(
    policy: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = policy.parent.parent / "data.csv"
    assert "the policy cannot be read" in refused("predict", tmp_path / "gone", data)
    assert "the policy cannot be read" in refused("predict", data, data)
    text = (policy / "policy.json").read_text()
    (policy / "policy.json").write_text(text.replace('"version": 2', '"version": 3', 1))
    assert "install a newer pointsman" in refused("predict", policy, data)


def test_inputs_that_do_not_fit_are_refused(
    finished_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    policy = finished_run / "run" / "policy"
    frame = pd.read_csv(finished_run / "data.csv").head(5)
    frame.drop(columns="f2").to_csv(tmp_path / "narrow.csv", index=False)
    assert "'f2' is missing" in refused("predict", policy, tmp_path / "narrow.csv")
    frame.assign(f1=np.nan).to_csv(tmp_path / "holed.csv", index=False)
    assert "column 'f1' has nan" in refused("predict", policy, tmp_path / "holed.csv")
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 9)))
    assert "got features of shape (3, 9)" in refused("predict", policy, tmp_path / "wide.npz")
    assert "got features of shape" in refused("predict", policy, "digits")
    assert "no such file" in refused("predict", policy, tmp_path / "gone.csv")


@pytest.mark.parametrize("out", ["/dev/null/x", "gone/p.csv", "."])
def test_an_output_that_cannot_be_written_is_refused(
    out: str,
    finished_run: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", finished_run / "run" / "policy", finished_run / "data.csv"]
    assert "cannot be written" in refused(*words, "--out", out)
    assert list(tmp_path.iterdir()) == []
