# Two commands do everything: `make demo` and `make test`. Each makes .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

.PHONY: demo test coverage claims browser clean

demo: .venv/.demo  ## every way to spend less on scikit-learn's digits, on one chart
	$(BIN)/pointsman compare digits --out pointsman-digits

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test: .venv/.test  ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

coverage: .venv/.test  ## the tests once more, with the share of lines that they run
	$(PYTEST) --cov=pointsman --cov-report=term:skip-covered

claims: .venv/.test  ## measure every claim anew and write docs/claims.md
	for name in $$($(BIN)/pointsman claims --json | $(BIN)/python -c "import json,sys; print(*(c['slug'] for c in json.load(sys.stdin)))"); do \
		OMP_NUM_THREADS=1 $(BIN)/pointsman claims run $$name --full || exit 1; done
	$(BIN)/pointsman claims docs --out docs/claims.md

browser:  ## Chromium from Debian, for the tests that render the report (they skip without it)
	sh scripts/install_browser.sh

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit('pointsman needs Python 3.11 or later, this is ' + sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing, a few minutes on first use"
	$(PIP) --editable .
	@touch $@

.venv/.test: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing, a few minutes on first use"
	$(PIP) --editable ".[dev]"
	@touch $@ .venv/.demo

clean:  ## the environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
