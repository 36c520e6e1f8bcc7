PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lint types imports fix clean

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv with everything needed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. hint: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data,dev,train]"
	@touch $@

demo: setup  ## train memory and dense models on real facts and write a report
	$(BIN)/memory-layers compare configs/demo.yaml

test: setup  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: setup format lint types imports test  ## everything that CI runs

format: setup
	$(BIN)/ruff format --check

lint: setup
	$(BIN)/ruff check

types: setup
	$(BIN)/ty check

imports: setup
	$(BIN)/lint-imports

fix: setup  ## repair what can be repaired
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove what setup and runs made
	rm -rf .venv runs .pytest_cache .ruff_cache .import_linter_cache
