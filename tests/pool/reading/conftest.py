"""Small logs as files of every format."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

FORMATS = ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a table, given by columns, or a text, as a file of a format."""

    def write(content: Any, suffix: str = "csv", name: str = "log") -> Path:
        path = tmp_path / f"{name}.{suffix}"
        if isinstance(content, bytes):
            path.write_bytes(content)
            return path
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
            return path
        table = pd.DataFrame(content)
        if suffix == "parquet":
            table.to_parquet(path)
        elif suffix.startswith("csv"):
            table.to_csv(path, index=False)
        else:
            lines = "".join(
                json.dumps({k: v for k, v in row.items() if v is not None and v == v}) + "\n"
                for row in table.astype(object).to_dict("records")
            )
            opened = gzip.open if suffix.endswith(".gz") else open
            with opened(path, "wt", encoding="utf-8") as file:
                file.write(lines)
        return path

    return write


@pytest.fixture
def wide() -> dict[str, list[Any]]:
    """Six queries, two models, costs."""
    return {
        "prompt": [f"what is {n} plus {n}?" for n in range(6)],
        "small": [1, 0, 1, None, 0, 1],
        "large": [1, 1, 0, 1, 1, 1],
        "small cost": [0.001, 0.002, 0.001, None, 0.001, 0.003],
        "large cost": [0.02, 0.03, 0.02, 0.05, 0.02, 0.06],
    }


@pytest.fixture
def long(wide: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The same, one row for each answer."""
    rows = [
        (wide["prompt"][at], model, wide[model][at], wide[f"{model} cost"][at])
        for at in range(6)
        for model in ("small", "large")
        if wide[model][at] is not None
    ]
    return dict(
        zip(("query", "model", "score", "cost"), map(list, zip(*rows, strict=True)), strict=True)
    )
