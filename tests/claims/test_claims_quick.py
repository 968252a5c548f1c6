"""The mechanism of every claim, and that listing them costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from pointsman.claims import CLAIMS, measure


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.slug)
def test_the_mechanism_works(claim):
    claim.quick()


def test_importing_every_claim_imports_nothing_heavy():
    heavy = ("torch", "numpy", "sklearn", "pandas", "rich")
    code = f"import sys, pointsman.claims; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_of_the_guide_is_a_claim_that_runs():
    guide = (Path(__file__).parents[2] / "docs" / "add-a-system.md").read_text(encoding="utf-8")
    names = {"__name__": __name__}
    exec(guide.split("```python\n")[1].split("```")[0], names)
    claim = names["CLAIM"]
    claim.quick()
    assert measure(claim, seeds=[0]).status == "holds"
