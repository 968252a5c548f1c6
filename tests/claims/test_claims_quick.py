"""The mechanism of every claim, and that listing them costs nothing."""

import subprocess
import sys

import pytest

from pointsman.claims import CLAIMS


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.slug)
def test_the_mechanism_works(claim):
    claim.quick()


def test_importing_every_claim_imports_nothing_heavy():
    heavy = ("torch", "numpy", "sklearn", "pandas", "rich")
    code = f"import sys, pointsman.claims; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
