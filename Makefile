# Everything runs in .venv, which the first target that needs it builds from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all check map bench docs clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with palate and everything its tests need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(STAMP)  ## train, evaluate and try a reward model on the sample data, offline
	HF_HUB_OFFLINE=1 $(BIN)/palate quickstart

test: $(STAMP)  ## checks, then the tests that take minutes
	$(MAKE) --no-print-directory check
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-all: $(STAMP)  ## every test, the slow ones too
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

check: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check --quiet src tests benchmarks examples
	$(BIN)/ruff check --quiet src tests benchmarks examples
	$(BIN)/mypy

map: $(STAMP)  ## write the tree of the source into the README and docs/map.md
	@$(BIN)/python tests/test_readme.py

bench: $(STAMP)  ## measured comparisons against peers (see benchmarks/)
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/speed.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/quality.py trl
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/quality.py losses

docs: $(STAMP)  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/zensical build --strict

clean:  ## remove .venv and caches
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache site
