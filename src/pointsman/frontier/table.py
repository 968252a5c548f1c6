"""A results mapping as a table for the terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pointsman.frontier.breakdown import pool_sections
from pointsman.frontier.reading import (
    OperatingPoint,
    Reading,
    Results,
    cheapest_within,
    read,
    share,
    worth_showing,
)

IN_TERMINAL = ("Over chance", "APGR", "CPT 50", "CPT 80", "CostSave")


def results_table(results: Results) -> RenderableType:
    """The results as a table for the terminal; plain text where there is no terminal.

    Per way at most five points, always with the pick and the cheapest that stays within the
    allowed drop on the test split. The pick and the certificate in words stand below.

    Args:
        results: what `pointsman compare` writes, schema version 1.

    Raises:
        InputError: as `read`.
    """
    reading = read(results)
    table = _columns(reading)
    _add(table, reading, reading.reference, f"reference: {reading.reference.knob}")
    for way in reading.ways:
        if way.points:
            table.add_row(Text(way.title, style="bold"))
        within = cheapest_within(way, reading.max_drop)
        for point in worth_showing(way, reading.max_drop):
            mark, style = ("• ", "bold") if point is within else ("  ", "")
            mark, style = ("▸ ", "bold green") if point.picked else (mark, style)
            _add(table, reading, point, point.knob, style, mark)
    if reading.oracle:
        _add(table, reading, reading.oracle, "oracle, known only in hindsight", "dim")
    notes = Text(
        "▸ the pick   • cheapest of its way within the allowed drop (test split)\n"
        f"mixing: what mixing the {reading.members} at random reaches at the same cost",
        style="dim",
    )
    verdict = Text(reading.headline(), style="bold green" if reading.certified else "bold yellow")
    words = Text(str(reading.results["certificate"]["words"]))
    return Group(table, Text(), notes, *_strategies(reading), Text(), verdict, words)


def _strategies(reading: Reading) -> list[RenderableType]:
    """Of a log, every strategy beside the trivial ones, and whether routing is worth it."""
    pool = pool_sections(reading)
    if pool is None:
        return []
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("strategy", overflow="fold", min_width=20)
    heads = [name for name, _ in pool["heads"]]
    shown = [heads.index(name) for name in IN_TERMINAL]
    for name in IN_TERMINAL:
        table.add_column(name, justify="right", no_wrap=True)
    for row in pool["strategies"]:
        cells = [row["cells"][at] for at in shown]
        table.add_row(Text(row["title"]), *(Text(cell["value"]) for cell in cells))
    said = Text(f"{pool['verdict']} {pool['recovered']}".strip())
    return [Text(), table, Text(), said]


def _columns(reading: Reading) -> Table:
    data, tested = reading.results["data"], reading.results["data"]["inputs"].get("test")
    title = f"{data['name']}: {reading.metric} against cost per {reading.per}"
    tests = "queries" if reading.routes_queries else "inputs"
    title += f", {tested:,} test {tests}" if isinstance(tested, int) else ""
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
        padding=0, pad_edge=False, show_edge=False,
    )  # fmt: skip
    lost = "drop\n(points)" if reading.percent else "\ndrop"
    metric = reading.metric.replace(" per ", "\nper ")
    metric = metric if "\n" in metric else "\n" + metric  # heads of two lines, the lower one filled
    table.add_column("\nsetting", overflow="fold", min_width=20)
    for head in (metric, lost, f"cost\n({reading.unit})", "\nsaved", "\nmixing"):
        table.add_column(Text(head), justify="right", no_wrap=True)
    return table


def _add(
    table: Table,
    reading: Reading,
    point: OperatingPoint,
    name: str,
    style: str = "",
    mark: str = "",
) -> None:
    setting = Table.grid()  # a cell of two columns, so that a long setting keeps its indent
    setting.add_column(no_wrap=True)
    setting.add_column(overflow="fold")
    setting.add_row(Text(mark), Text(name))
    row = (
        reading.quality(point.quality),
        reading.drop(point.drop),
        reading.cost(point.cost, unit=False),
        share(point.saved, fixed=True),
        "" if point.mixed is None else reading.quality(point.mixed),
    )
    table.add_row(setting if mark else Text(name), *(Text(cell) for cell in row), style=style)
