"""Evaluation logs from files, and in words what was recognised in them.

Legend: N queries, M models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.log import Log
from pointsman.pool.reading import names
from pointsman.pool.reading.assemble import Cells, assembled
from pointsman.pool.reading.costs import costs
from pointsman.pool.reading.files import SUFFIXES, LogFile
from pointsman.pool.reading.gather import gather
from pointsman.pool.reading.layout import recognise
from pointsman.pool.reading.names import one_of
from pointsman.pool.reading.prices import read_prices
from pointsman.pool.reading.values import Array, is_text_column
from pointsman.pool.reading.words import note

MOST_QUERIES = 100_000  # more are sampled, unless `rows` says otherwise
LONGEST_HEADER = 1 << 20  # bytes
GLANCE = 200  # rows by which a log is told from a table of features


def read_log(
    path: str | Path,
    *,
    query: str | None = None,
    models: Sequence[str] | None = None,
    prices: str | Path | None = None,
    groups: Sequence[str] | None = None,
    quality_range: tuple[float, float] | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> Log:
    """Read an evaluation log; what was recognised stands in its `note`.

    A wide log has one row for each query and one column of scores for each model, beside which
    columns such as "<model> cost" may stand. A long one has one row for each answer, with columns
    such as query, model, score, cost. Files are .csv, .jsonl (either also .gz) or .parquet.

    Args:
        path: of the file.
        query: column with the text of the query; None: one called query, prompt, question, ….
        models: their names; None: as recognised.
        prices: price file, see `read_prices`: needed where the log has no costs.
        groups: columns that say whom or what a query belongs to; None: task, subject, user, ….
        quality_range: lowest and highest score, which become 0 and 1; None: scores are in [0, 1].
        rows: most queries to use, a uniform sample; None: 100,000.
        seed: of the sample.

    Raises:
        InputError: in one line, whatever stops the file from being a log.
    """
    path = Path(path)
    low, high = _range(quality_range)
    if rows is not None and rows < 1:
        raise InputError(f"--rows takes a number of at least 1, got {rows}")
    file = LogFile(path)
    listed = {} if prices is None else read_prices(Path(prices))
    layout = recognise(
        path,
        file.head(),
        query=query,
        groups=groups,
        models=models,
        priced=tuple(listed),
        low=low,
        high=high,
    )
    table = gather(file, layout, low=low, high=high, size=rows or MOST_QUERIES, seed=seed)
    cells = assembled(path, layout, table).scored()
    if len(cells.queries) == 0:
        raise InputError(f"{path}: no query has a score of any model")
    cost, how = costs(path, cells, listed, None if prices is None else Path(prices))
    try:
        log = _log(path, cells, cost)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return replace(log, note=note(log, layout, table, cells, how))


def looks_like_log(path: str | Path) -> bool:
    """Whether a file is an evaluation log rather than a table of features with a label.

    Decided by its header and first rows: .jsonl and .gz files are logs; others are if they have a
    column of texts called query, prompt or so, or columns that name models and scores. Never
    raises: what cannot be read is left to whoever reads it.
    """
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        return False
    if not name.endswith((".csv", ".parquet")):
        return True
    try:
        if name.endswith(".csv") and not _has_header(path):
            return False
        file = LogFile(path)
        if one_of(file.names, names.MODEL) and one_of(file.names, names.ROLES[names.QUALITY]):
            return True
        head = file.head(GLANCE)
        asked = one_of(file.names, names.QUERY)
        if asked is not None and is_text_column(head[asked]):
            return True
        layout = recognise(path, head)
        return layout.query is not None or layout.vector is not None
    except InputError:
        return False


def _has_header(path: Path) -> bool:
    """Whether a line ends early in the file, so that it can be looked at without reading much."""
    try:
        with path.open("rb") as file:
            return b"\n" in file.read(LONGEST_HEADER)
    except OSError:
        return False


def _range(given: tuple[float, float] | None) -> tuple[float, float]:
    if given is None:
        return 0.0, 1.0
    low, high = (float(bound) for bound in given)
    if not (isfinite(low) and isfinite(high) and low < high):
        raise InputError(
            f"--quality-range takes the lowest and the highest score, such as 0,10, got {low:g},"
            f"{high:g}"
        )
    return low, high


def _log(path: Path, cells: Cells, cost: Array) -> Log:
    signals, signal_cost = _signals(cells.cells)
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix) if name.lower().endswith(suffix) else name
    return Log(
        queries=cells.queries,
        models=cells.models,
        quality=cells.cells[names.QUALITY],
        cost=cost,
        latency=_latency(cells.cells),
        signals=signals,
        signal_cost=signal_cost,
        groups=cells.groups,
        vectors=cells.vectors,
        name=name,
    )


def _latency(cells: Mapping[str, Array]) -> Array | None:
    seconds, milliseconds = cells.get(names.LATENCY), cells.get(names.MILLISECONDS)
    if milliseconds is None:
        return seconds
    found = milliseconds / 1000.0
    return found if seconds is None else np.where(np.isnan(seconds), found, seconds)


def _signals(cells: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    signals, cost = {}, {}
    for signal in names.SIGNALS:
        values = cells.get(names.SIGNAL + signal)
        if values is not None and not np.isnan(values).all():
            signals[signal] = values
            spent = cells.get(names.SIGNAL_COST + signal)
            if spent is not None:
                cost[signal] = spent
    return signals, cost
