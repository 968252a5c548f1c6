"""Log files in pieces: .csv and .jsonl (either also .gz) and .parquet, a part at a time."""

import csv
import gzip
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from pointsman.errors import InputError, reason
from pointsman.pool.reading.names import shown

SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
ROWS_AT_ONCE = 100_000
HEAD = 20_000  # rows by which the columns are recognised


class LogFile:
    """A table in a file that is read in pieces.

    Args:
        path: of a .csv, .csv.gz, .jsonl, .jsonl.gz or .parquet file. A .csv file has a header line;
            each line of a .jsonl file is an object, and what is nested in it gets names such as
            "cost/gpt-4".

    Attributes:
        names: of the columns, as they stand in the file.

    Raises:
        InputError: no such file, another format, an empty or unreadable file, equal column names.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
        if not found:
            raise InputError(
                f"{path}: a log is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file: save it as "
                "one of these"
            )
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        self.format = found[0].removesuffix(".gz")
        with self._readable():
            self.names = self._names()
        if not self.names:
            raise InputError(f"{path}: this file is empty: it has neither columns nor rows")
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise InputError(
                f"{path}: column names must differ, {twice[0]!r} is there twice: rename one of them"
            )

    def head(self, rows: int = HEAD) -> Any:
        """A pandas frame of the first rows, all columns."""
        with self._readable():
            if self.format == ".csv":
                return self._csv(nrows=rows)
            return next(self._pieces(self.names, (), rows))

    def chunks(self, columns: Sequence[str], texts: Sequence[str]) -> Iterator[Any]:
        """Pandas frames of up to `ROWS_AT_ONCE` rows, of some columns, in the order of the file.

        Args:
            columns: to read.
            texts: those of them that must not be read as numbers.
        """
        with self._readable():
            yield from self._pieces(columns, texts, ROWS_AT_ONCE)

    def _pieces(self, columns: Sequence[str], texts: Sequence[str], rows: int) -> Iterator[Any]:
        import pandas as pd

        if self.format == ".csv":
            options = {"usecols": list(columns), "dtype": dict.fromkeys(texts, str)}
            yield from self._csv(chunksize=rows, **options)
        elif self.format == ".parquet":
            import pyarrow.parquet as parquet

            file = parquet.ParquetFile(self.path)
            empty = file.schema_arrow.empty_table().select(list(columns))
            batches = file.iter_batches(rows, columns=list(columns))
            first = next(batches, None)
            yield (empty if first is None else first).to_pandas()
            for batch in batches:
                yield batch.to_pandas()
        else:
            with self._open() as file:
                objects = self._objects(file)
                piece = list(islice(objects, rows))
                while True:
                    yield pd.DataFrame.from_records(
                        [[row.get(name) for name in columns] for row in piece],
                        columns=list(columns),
                    )
                    piece = list(islice(objects, rows))
                    if not piece:
                        return

    def _csv(self, **options: Any) -> Any:
        import pandas as pd

        return pd.read_csv(
            self.path,
            encoding="utf-8-sig",
            header=0,
            names=self.names,
            index_col=False,
            low_memory=False,
            # Only an empty cell is missing: a query may well be called "None" or "NA".
            keep_default_na=False,
            na_values=[""],
            **options,
        )

    def _names(self) -> list[str]:
        if self.format == ".parquet":
            import pyarrow.parquet as parquet

            return list(parquet.read_schema(self.path).names)
        with self._open() as file:
            if self.format == ".jsonl":
                return list(dict.fromkeys(name for row in self._objects(file) for name in row))
            row = next((row for row in csv.reader(file) if row), [])
        names = [name.strip() for name in row]
        # A saved row number has no name.
        return [name or f"unnamed {at}" for at, name in enumerate(names)] if any(names) else []

    def _objects(self, file: TextIO) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{self.path}: every line must be a JSON object, line {number} is not JSON "
                    f"({reason(error)})"
                ) from error
            if not isinstance(row, dict):
                raise InputError(
                    f"{self.path}: every line must be a JSON object, line {number} is a "
                    f"{type(row).__name__}"
                )
            yield _flat(row)

    def _open(self) -> TextIO:
        if self.path.name.lower().endswith(".gz"):
            file = gzip.open(self.path, "rt", encoding="utf-8-sig", newline="")  # noqa: SIM115
            return cast(TextIO, file)
        return self.path.open(encoding="utf-8-sig", newline="")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Errors of the libraries in one line."""
        import pandas as pd

        try:
            with warnings.catch_warnings():
                # Rows longer than the header would be cut, or shift every column by one.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                yield
        except InputError:
            raise
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.path}: a log is read as UTF-8, which this is not ({error.reason}): save it "
                "as UTF-8"
            ) from error
        except (
            csv.Error,
            pd.errors.EmptyDataError,
            pd.errors.ParserError,
            pd.errors.ParserWarning,
        ) as error:
            raise InputError(
                f"{self.path}: this is not a table with a header line and as many cells in every "
                f"row, separated by commas ({reason(error)})"
            ) from error
        except (OSError, EOFError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{self.path}: cannot be read as {self.format} ({reason(error)})"
            ) from error


def _flat(row: dict[str, Any], under: str = "") -> dict[str, Any]:
    """Nested objects as one, with names joined by "/"."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{under}{name}/")
        else:
            flat[under + name] = value
    return flat


def must_have(path: Path, names: Sequence[str], column: str, option: str) -> str:
    """A column that the user named.

    Raises:
        InputError: the file has no such column.
    """
    if column not in names:
        raise InputError(
            f"{path}: {option} names {column!r}, which is no column: the columns are "
            f"{shown(list(names), 12)}"
        )
    return column
