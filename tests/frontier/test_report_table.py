"""The table of results for the terminal."""

from io import StringIO

import pytest
from results_example import VARIANTS, features, uncertified
from rich.console import Console

from pointsman.frontier import table


def shown(results: dict, width: int, *, colour: bool = False) -> str:
    out = StringIO()
    system = "truecolor" if colour else "auto"
    console = Console(
        file=out, width=width, force_terminal=colour, color_system=system, _environ={}
    )
    console.print(table.results_table(results))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_table_fits_and_keeps_its_columns_aligned(variant, width):
    rows = shown(VARIANTS[variant](), width).splitlines()
    assert max(map(len, rows)) <= width
    figures = [row.rstrip() for row in rows if row.startswith(("  ", "• ", "▸ ")) and "%" in row]
    figures = [row for row in figures if "reference" not in row]
    assert len(figures) > 15
    assert len({len(row) for row in figures}) == 1
    assert not [row for row in rows if "…" in row]


def test_the_table_shows_the_pick_the_reference_the_oracle_and_the_certificate():
    out = shown(features(), 80)
    flat = " ".join(out.split())
    assert "reference: mlp 256-256 97.5 % 0.00 176 0.0 %" in flat
    assert "▸ mlp 16 > mlp 256-256 @ 0.93 97.3 % 0.22 25.3 85.6 % 96.5 %" in flat
    assert "• mlp 16 > mlp 256-256 @ 0.88" in flat  # cheaper and allowed on the test split
    assert "oracle, known only in hindsight 99.1 %" in flat
    assert "certified at 95 % confidence." in flat
    assert features()["certificate"]["words"] in flat
    assert "is not certified" in " ".join(shown(uncertified(), 80).split())


def test_without_a_terminal_the_table_is_plain_and_with_one_the_pick_stands_out():
    assert "\x1b" not in shown(features(), 80)
    assert "\x1b[1;32m" in shown(features(), 80, colour=True)


def test_texts_of_the_data_are_neither_markup_nor_commands_to_the_terminal():
    results = features()
    results["ways"][1]["title"] = "[red]tags[/red] \x1b[2J\u202e"
    results["certificate"]["words"] = "[bold]as it is[/bold]\nnext \ud800"
    out = shown(results, 120)
    assert "[red]tags[/red] \ufffd[2J\ufffd" in out
    assert "[bold]as it is[/bold] next \ufffd" in out
    assert "\x1b[2J" not in shown(results, 120, colour=True)


def test_a_long_setting_goes_on_below_itself():
    results = features()
    results["ways"][1]["points"][3]["knob"] = knob = "mlp 16 > " * 6 + "mlp 256-256 @ 0.93"
    results["pick"]["knob"] = knob
    rows = shown(results, 80).splitlines()
    at = next(i for i, row in enumerate(rows) if row.startswith("▸"))
    assert rows[at + 1].startswith("  mlp 16")
    assert "97.3" not in rows[at + 1]


def test_a_way_without_points_is_left_out():
    results = features()
    results["ways"][2]["points"] = []
    assert "Early exits" not in shown(results, 80)
