PYTHON ?= python3
BIN := .venv/bin
# A machine with a GPU may have torch and Triton without a .venv of ours.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench gpu check format lint types imports fix clean

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv with everything needed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. hint: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[data,dev,eval,serve,train]"
	@touch $@

demo: setup  ## train memory and dense models on real facts and write a report
	$(BIN)/memory-layers compare configs/demo.yaml

test: setup  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup runs/tiny/model  ## time every operation on this CPU, and measure the targets
	for what in find read write step layer train generate; do $(BIN)/memory-layers bench $$what || exit; done
	for what in read write step; do \
	  $(BIN)/memory-layers bench $$what --slots recorded --model runs/tiny/model || exit; done
	$(BIN)/memory-layers bench targets

runs/tiny/model: | setup
	$(BIN)/memory-layers train configs/tiny.yaml

gpu:  ## on a machine with an NVIDIA GPU: test the kernels, then time them, in 10 minutes
	PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/ops tests/layers tests/optim
	PYTHONPATH=src $(GPU_PYTHON) -m memory_layers.bench.gpu

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
