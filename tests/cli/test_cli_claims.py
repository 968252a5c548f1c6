"""`pointsman claims`: listing, running, recording, writing the page."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from pointsman.claims import CLAIMS, find, must
from pointsman.claims.measuring import read
from pointsman.cli import claims as cli_claims
from pointsman.cli.main import cli

SMALL = replace(
    find("sortednet"),
    full=lambda seed: {"ours: accuracy": 0.5 + seed / 10, "theirs: accuracy": 0.25},
    decide=lambda measurements: measurements[0]["ours: accuracy"] > 0.4,
    key={"ours": "ours: accuracy"},
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One claim that is quick to measure, recorded in a folder of its own."""
    monkeypatch.setattr(cli_claims, "find", lambda name: SMALL)
    monkeypatch.setattr(cli_claims, "path_of", lambda claim: tmp_path / f"{claim.slug}.json")
    return tmp_path


def run(*words):
    return CliRunner().invoke(cli, ["claims", *words], env={"COLUMNS": "120"})


def test_the_list_names_every_claim_with_its_status():
    result = run()
    assert result.exit_code == 0
    for claim in CLAIMS:
        assert claim.slug in result.output
        assert claim.arxiv in result.output


def test_the_list_as_json():
    listed = json.loads(run("--json").output)
    assert [entry["slug"] for entry in listed] == [claim.slug for claim in CLAIMS]
    for entry in listed:
        assert {"paper", "arxiv", "level", "status", "mean", "spread"} <= set(entry)


@pytest.mark.parametrize("width", ["80", "120"])
def test_the_list_keeps_to_the_width(width):
    output = CliRunner().invoke(cli, ["claims"], env={"COLUMNS": width}).output
    assert max(map(len, output.splitlines())) <= int(width)


def test_an_unknown_name_is_one_line_with_near_names_and_code_2():
    result = run("run", "sorted-net")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "sortednet" in result.stderr


def test_run_checks_the_mechanism():
    result = run("run", "window-cascade")
    assert result.exit_code == 0
    assert "the mechanism works" in result.output


def test_a_broken_mechanism_is_told_with_code_1(small, monkeypatch):
    broken = replace(SMALL, quick=lambda: must(False, "prefixes are prefixes"))
    monkeypatch.setattr(cli_claims, "find", lambda name: broken)
    result = run("run", "sortednet")
    assert result.exit_code == 1
    assert "broken: prefixes are prefixes" in result.output
    told = json.loads(run("run", "sortednet", "--json").output)
    assert (told["mechanism"], told["reason"]) == ("broken", "prefixes are prefixes")


def test_a_full_run_shows_the_table_and_decides_and_records(small):
    result = run("run", "sortednet", "--full")
    assert result.exit_code == 0
    for text in ("0.600 ± 0.100", "Criterion", "Decision: holds"):
        assert text in result.stdout
    assert f"recorded: {small / 'sortednet.json'}" in result.stderr
    recorded = read(SMALL, small)
    assert recorded is not None
    assert recorded.mean == {"ours: accuracy": 0.6, "theirs: accuracy": 0.25}
    assert [path.name for path in small.iterdir()] == ["sortednet.json"]


def test_a_full_run_as_json_is_the_record(small):
    result = run("run", "sortednet", "--full", "--json")
    assert result.stdout == (small / "sortednet.json").read_text()


def test_a_folder_that_cannot_be_written_is_said_and_the_result_still_shown(small, monkeypatch):
    monkeypatch.setattr(cli_claims, "path_of", lambda claim: small / "absent" / "sortednet.json")
    result = run("run", "sortednet", "--full")
    assert result.exit_code == 0
    assert "not recorded" in result.stderr
    assert "Decision: holds" in result.stdout


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_a_run_that_is_cut_off_leaves_the_earlier_record_whole(small, monkeypatch, error, code):
    run("run", "sortednet", "--full")
    before = (small / "sortednet.json").read_bytes()

    def full(seed):
        if seed == 1:
            raise error
        return SMALL.full(seed)

    monkeypatch.setattr(cli_claims, "find", lambda name: replace(SMALL, full=full))
    assert run("run", "sortednet", "--full").exit_code == code
    assert (small / "sortednet.json").read_bytes() == before
    assert len(list(small.iterdir())) == 1


def test_docs_writes_the_page_whole(tmp_path):
    result = run("docs", "--out", str(tmp_path / "claims.md"))
    assert result.exit_code == 0
    assert (tmp_path / "claims.md").read_text().startswith("# Claims")
    assert len(list(tmp_path.iterdir())) == 1


def test_docs_where_nothing_can_be_written_is_one_line_with_code_2(tmp_path):
    result = run("docs", "--out", str(tmp_path / "absent" / "claims.md"))
    assert result.exit_code == 2
    assert "give --out" in result.stderr
