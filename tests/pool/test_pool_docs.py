"""docs/pool.md and docs/serve.md: the examples run, the links lead somewhere."""

import re
from pathlib import Path

import pandas as pd
import pytest

from pointsman.compare.queries import run
from pointsman.compare.queries.offers import Offer
from pointsman.compare.queries.run import compare_log
from pointsman.compare.request import Request
from pointsman.pool.reading import read_log
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Single
from pointsman.pool.synthetic import world

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with log.csv, as the page has it."""
    log = world("linear", models=2, seed=0).log(400, 1)
    columns = {"prompt": log.queries}
    for at, name in enumerate(("small", "large")):
        columns |= {name: log.quality[:, at], f"{name} cost": log.cost[:, at]}
    pd.DataFrame(columns).to_csv(tmp_path / "log.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_the_pool_run(folder, monkeypatch, capsys):
    kinds = [(Single(), "alone"), (BeforeCall(Linear()), "before")]
    monkeypatch.setattr(run, "offers", lambda log, *, tasks: [Offer(*each) for each in kinds])
    compare_log(read_log("log.csv"), Request(), folder / "pointsman-log")
    policy, parts = blocks("pool.md")
    exec(policy.replace("cost=0.002", "cost=1"), {})  # whatever the models here cost
    exec(parts, {})
    assert "at most 1%" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["pool.md", "serve.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (DOCS / target).exists(), target
