# Needs python3.11 and make, nothing else. Every target can be called again; what is up to date is not redone.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.DEFAULT_GOAL := help
COUNT ?= 20
SEED ?= 0

.PHONY: help demo test test-all check mutants clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## a whole search in two and a half minutes: runs/digits/report.html
	$(BIN)/paretopress search digits --time 2.5min --out runs/digits

test: check  ## linters, types, import directions, and the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: check  ## the same with the tests that take minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-test  ## linters, types and import directions only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutants: $(VENV)/.installed-test  ## how many of COUNT small faults in the code the tests notice (the first time: half an hour)
	$(INSTALL) --no-build-isolation -e '.[mutants]'
	$(BIN)/python tests/mutants.py --count $(COUNT) --seed $(SEED)

clean:  ## remove the environment and what was built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	touch $@

# setuptools first and no build isolation: the build, too, uses the tested version.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation -e '.[test,openvino,ncnn,ray]'
	touch $@
