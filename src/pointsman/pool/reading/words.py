"""What was recognised in a log, in a few sentences."""

import numpy as np

from pointsman.pool.log import Log
from pointsman.pool.reading import names
from pointsman.pool.reading.assemble import Cells
from pointsman.pool.reading.gather import Gathered
from pointsman.pool.reading.layout import Layout
from pointsman.pool.reading.names import shown


def note(log: Log, layout: Layout, table: Gathered, cells: Cells, how: str) -> str:
    """Sentences on the layout, the costs, what else was found, and what is missing or left out."""
    sentences = [
        _shape(log, layout, cells),
        how,
        _companions(log, layout),
        _missing(log),
        _repeated(log, cells),
        _left_out(log, layout, table, cells),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _shape(log: Log, layout: Layout, cells: Cells) -> str:
    kind = "Wide" if layout.model is None else "Long"
    where = "without text" if layout.query is None else f"from column {layout.query!r}"
    if layout.key is not None:
        where += f", told apart by {layout.key!r}"
    models = f"{len(log.models)} models ({shown(log.models)})"
    if layout.model is not None:
        models += f" from column {layout.model!r} with scores from "
        models += repr(layout.cells[names.QUALITY][""])
    return f"{kind} log: {_count(len(log), 'query', 'queries')} {where}, {models}."


def _companions(log: Log, layout: Layout) -> str:
    found = []
    for group, column in layout.groups.items():
        distinct = len(set(log.groups[group]))
        as_ = "tasks" if group == "task" else "groups"
        found.append(f"{distinct:,} {as_} from column {column!r}")
    if log.latency is not None:
        found.append("latencies")
    for signal in log.signals:
        paid = "" if signal not in log.signal_cost else " with its cost"
        found.append(f"the signal {signal}{paid}")
    if log.vectors is not None:
        found.append(f"vectors of {log.vectors.shape[1]} numbers from column {layout.vector!r}")
    return f"Also found: {', '.join(found)}." if found else ""


def _missing(log: Log) -> str:
    missing, all_cells = int(np.isnan(log.quality).sum()), log.quality.size
    unpriced = int((np.isnan(log.cost) & ~np.isnan(log.quality)).sum())
    words = "No score is missing."
    if missing:
        words = (
            f"{missing:,} of {all_cells:,} scores are missing ({missing / all_cells:.1%}); "
            f"{_count(int(log.complete().sum()), 'query', 'queries')} have all of them."
        )
    if unpriced:
        words += f" {_count(unpriced, 'score has', 'scores have')} no cost."
    return words


def _repeated(log: Log, cells: Cells) -> str:
    words = []
    if cells.averaged:
        times = _count(cells.averaged, "score was", "scores were")
        words.append(f"{times} averaged with another one of the same query and model.")
    if cells.reworded:
        several = _count(cells.reworded, "query has", "queries have")
        words.append(f"{several} more than one text: the first counts.")
    twice = int((np.bincount(log.identity()) > 1).sum())
    if twice:
        again = _count(twice, "query occurs", "queries occur")
        words.append(f"{again} more than once, and stay together in every split.")
    return " ".join(words)


def _left_out(log: Log, layout: Layout, table: Gathered, cells: Cells) -> str:
    words = []
    if table.sampled:
        words.append(
            f"The file has {table.queries:,} different queries in {table.rows:,} rows: a uniform "
            "sample of the queries is used; --rows changes how many."
        )
    reasons = {layout.key or "query": table.unasked, "model": table.unnamed}
    for what, count in reasons.items():
        if count:
            words.append(f"{_count(count, 'row', 'rows')} without a {what} left out.")
    if cells.unscored:
        without = _count(cells.unscored, "query", "queries")
        words.append(f"{without} without any score{', or text' if layout.key else ''} left out.")
    if layout.aside:
        one = len(layout.aside) == 1
        words.append(f"Column{'' if one else 's'} not used: {shown(layout.aside, 6)}.")
    return " ".join(words)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
