"""New queries from a file, for a policy to route."""

from collections.abc import Iterator
from pathlib import Path

from pointsman.errors import InputError
from pointsman.pool.reading import names
from pointsman.pool.reading.files import LogFile
from pointsman.pool.reading.names import one_of, shown
from pointsman.pool.reading.values import texts


def read_queries(path: Path, query: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Each query of a file with its task, where a column names one.

    Args:
        path: of a file such as `read_log` takes; it needs no scores.
        query: column with the text; None: one called query, prompt, question, ….

    Raises:
        InputError: no such file or column.
    """
    file = LogFile(path)
    column = query or one_of(file.names, names.QUERY) or one_of(file.names, names.QUERY_TOO)
    if column is None or column not in file.names:
        raise InputError(
            f"{path}: a column with queries is needed, called query, prompt or question; the "
            f"columns are {shown(file.names)}"
        )
    task = one_of(file.names, names.TASK)
    wanted = [column] if task is None else [column, task]
    for frame in file.chunks(wanted, wanted):
        tasks = [None] * len(frame) if task is None else texts(frame[task])
        for asked, named in zip(texts(frame[column]), tasks, strict=True):
            yield asked or "", named
