"""The frame: what a claim must say, statuses, staleness, what is recorded, near names."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from pointsman import claims
from pointsman.claims import CLAIMS, Claim, Standing, find, measure, must
from pointsman.claims.frame import mean, spread
from pointsman.claims.measuring import digest, path_of, read
from pointsman.claims.tables import cell, document, grid, key_figures
from pointsman.errors import InputError

PACKAGE = Path(claims.__file__).parent


def quick():
    must(1 + 1 == 2, "sums add up")


def full(seed):
    return {"ours: accuracy": 0.9 + 0.01 * seed, "theirs: accuracy": 0.8, "ours: cost": 1 / 3}


def decide(measurements):
    return mean(measurements, "ours: accuracy") > mean(measurements, "theirs: accuracy")


CLAIM = Claim(
    slug="a-claim",
    paper="On Sums",
    year=2020,
    arxiv="2001.00001",
    level="pool",
    claim="Ours is better.",
    baseline="Theirs.",
    criterion="Ours is above theirs.",
    quick=quick,
    full=full,
    decide=decide,
    key={"ours": "ours: accuracy"},
)


# ---------------------------------------------------------------- a claim


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slug": "A Claim"}, "slug"),
        ({"level": "cellar"}, "level is one of moe"),
        ({"arxiv": "18051"}, "arXiv"),
        ({"full": None}, "give both"),
        ({"decide": None}, "give both"),
    ],
)
def test_a_claim_that_breaks_a_rule_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(CLAIM, **change)


def test_must_refuses_with_the_rule_as_its_text():
    must(True, "fine")
    with pytest.raises(AssertionError, match="sums add up"):
        must(False, "sums add up")


def test_mean_and_spread_are_over_the_seeds():
    seeds = [{"a: b": 1.0}, {"a: b": 2.0}, {"a: b": 6.0}]
    assert mean(seeds, "a: b") == 3.0
    assert spread(seeds, "a: b") == pytest.approx(7**0.5)
    assert spread(seeds[:1], "a: b") == 0.0


# ---------------------------------------------------------------- measuring


def test_a_measurement_holds_every_seed_and_decides():
    done = []
    found = measure(CLAIM, seeds=(0, 1, 2), on_seed=done.append)
    assert done == [0, 1, 2]
    assert found.status == "holds"
    assert [figures["ours: accuracy"] for figures in found.figures] == [0.9, 0.91, 0.92]
    assert found.mean["ours: accuracy"] == 0.91
    assert found.spread["ours: accuracy"] == pytest.approx(0.01)
    assert found.mean["ours: cost"] == 0.333333


def test_a_false_claim_is_recorded_as_such():
    false = replace(CLAIM, decide=lambda measurements: not decide(measurements))
    assert measure(false).status == "does not hold here"


@pytest.mark.parametrize("wrong", [{"ours: accuracy": float("nan")}, {"accuracy": 1.0}, {}])
def test_figures_that_are_no_figures_are_refused(wrong):
    with pytest.raises(ValueError, match="a-claim"):
        measure(replace(CLAIM, full=lambda seed: wrong))


def test_every_seed_must_give_the_same_figures():
    changing = replace(CLAIM, key={}, full=lambda seed: {f"{seed}: a": 1.0})
    with pytest.raises(ValueError, match="same figures"):
        measure(changing)


def test_a_claim_without_a_full_run_is_not_measured():
    with pytest.raises(InputError, match="no full run"):
        measure(replace(CLAIM, full=None, decide=None))


def test_torch_gets_its_threads_back():
    import torch

    torch.set_num_threads(2)
    seen = []
    measure(replace(CLAIM, full=lambda seed: seen.append(torch.get_num_threads()) or full(seed)))
    assert (set(seen), torch.get_num_threads()) == ({1}, 2)


def test_what_is_written_is_read_back(tmp_path):
    found = measure(CLAIM)
    path_of(CLAIM, tmp_path).write_text(found.to_json())
    assert read(CLAIM, tmp_path) == found


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": {"name": "other"}}'])
def test_a_damaged_record_is_refused_by_name(tmp_path, text):
    path_of(CLAIM, tmp_path).write_text(text)
    with pytest.raises(InputError, match=r"a-claim.json is no measurement.*run a-claim --full"):
        read(CLAIM, tmp_path)


def test_a_record_that_lacks_a_part_is_refused(tmp_path):
    whole = json.loads(measure(CLAIM).to_json())
    del whole["seeds"]
    path_of(CLAIM, tmp_path).write_text(json.dumps(whole))
    with pytest.raises(InputError, match="missing seeds"):
        read(CLAIM, tmp_path)


# ---------------------------------------------------------------- standing


def test_the_four_statuses(tmp_path):
    assert Standing.of(CLAIM, tmp_path).words == "not run"
    assert Standing.of(replace(CLAIM, full=None, decide=None), tmp_path).words == "mechanism only"
    for claim in (CLAIM, replace(CLAIM, decide=lambda measurements: False)):
        found = measure(claim)
        path_of(claim, tmp_path).write_text(found.to_json())
        assert Standing.of(claim, tmp_path).words == found.status


def test_another_criterion_than_was_measured_is_said(tmp_path):
    path_of(CLAIM, tmp_path).write_text(measure(CLAIM).to_json())
    moved = Standing.of(replace(CLAIM, criterion="Ours is near theirs."), tmp_path)
    assert moved.words == "holds, measured before a change"
    assert moved.as_dict()["measured_before_a_change"]


def test_other_code_than_was_measured_is_said(tmp_path):
    found = measure(CLAIM)
    assert not Standing(CLAIM, found).stale
    assert Standing(CLAIM, replace(found, digest="0123456789abcdef")).stale


SOURCE = '''"""What was settled."""

LIMIT = 1


def quick():
    """Check."""


CLAIM = dict(
    claim="Better.",
    quick=quick,
)
'''


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("LIMIT = 1", "LIMIT = 2", True),
        ("What was settled.", "What was settled,\nat length.", False),
        ("LIMIT = 1", "LIMIT = 1  ", False),
        ("Better.", "Much better.", False),
        ("Check.", "Check it.", True),
    ],
)
def test_the_digest_follows_the_code_but_not_its_words(tmp_path, monkeypatch, old, new, stale):
    file = tmp_path / "a_claim_file.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("a_claim_file", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "a_claim_file", module)
    spec.loader.exec_module(module)
    claim = replace(CLAIM, quick=module.quick)
    before = digest(claim)
    assert old in SOURCE
    file.write_text(SOURCE.replace(old, new))
    assert (digest(claim) != before) == stale


# ---------------------------------------------------------------- tables


def test_figures_become_the_table_their_names_spell():
    table = grid(measure(CLAIM))
    assert table.columns == ("accuracy", "cost")
    assert table.rows == (
        ("ours", ("0.910 ± 0.010", "0.333 ± 0.000")),
        ("theirs", ("0.800 ± 0.000", "")),
    )


def test_the_page_shows_claim_criterion_status_and_figures():
    found = measure(CLAIM)
    noted = replace(CLAIM, note="It rained.")
    page = document([Standing(noted, found), Standing(replace(CLAIM, slug="another"), None)])
    for text in (
        CLAIM.claim,
        CLAIM.criterion,
        "**holds**",
        "0.910 ± 0.010",
        "It rained.",
        "arxiv.org/abs/2001",
    ):
        assert text in page
    assert "| [another](#another) | On Sums |  | **not run** |" in page


def test_key_figures_are_those_that_were_measured():
    found = measure(CLAIM)
    other = replace(CLAIM, key={"ours": "ours: accuracy", "theirs": "theirs: grace"})
    assert key_figures(Standing(other, found)) == [("ours", cell(found, "ours: accuracy"))]
    assert key_figures(Standing(other, None)) == []


# ---------------------------------------------------------------- the catalogue


def test_every_claim_file_is_in_the_catalogue_and_named_after_its_slug():
    files = {
        (path.parent.name, path.stem) for path in PACKAGE.glob("*/*.py") if path.stem != "__init__"
    }
    listed = [(claim.level, claim.slug.replace("-", "_")) for claim in CLAIMS]
    assert set(listed) == files
    assert len(listed) == len(set(listed))


def test_an_unknown_name_is_answered_with_near_ones():
    assert find("sortednet") is next(claim for claim in CLAIMS if claim.slug == "sortednet")
    with pytest.raises(InputError, match="did you mean softmax-cascade"):
        find("Softmax_Cascde")
    with pytest.raises(InputError, match="lists them all"):
        find("zzz")


def test_no_record_is_left_of_a_claim_that_is_gone():
    records = {path.stem for path in (PACKAGE / "measured").glob("*.json")}
    assert records <= {claim.slug for claim in CLAIMS}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.slug)
def test_a_record_says_what_its_figures_say(claim):
    found = read(claim)
    if found is None or claim.decide is None:
        pytest.skip("not measured yet")
    standing = Standing.of(claim)
    assert set(claim.key.values()) <= set(found.mean)
    assert len(found.seeds) == len(found.figures) >= 3
    for name, value in found.mean.items():
        assert fmean(seed[name] for seed in found.figures) == pytest.approx(
            value,
            rel=1e-5,
            abs=1e-5,  # six significant digits are kept
        )
    if not standing.stale:
        assert (found.status == "holds") == claim.decide(found.figures)


@pytest.mark.parametrize(
    "claim",
    [claim for claim in CLAIMS if claim.level in ("moe", "depth", "steps", "supernet")],
    ids=lambda claim: claim.slug,
)
def test_a_system_says_what_it_is_made_of_and_by(claim):
    module, _, name = claim.entry.rpartition(".")
    made = getattr(importlib.import_module(module), name)
    assert made.__doc__
    assert claim.composition
    assert claim.mechanism.endswith(".")


def test_the_page_of_claims_is_what_the_records_give():
    page = Path(__file__).parents[2] / "docs" / "claims.md"
    made = document(Standing.of(claim) for claim in CLAIMS)
    assert page.read_text(encoding="utf-8") == made, "run `pointsman claims docs`"
