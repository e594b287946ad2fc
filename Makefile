PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: help setup demo doctor test test-fast lint format guide bench slurm-up slurm-down clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY)  ## create .venv and install the pinned packages

demo: $(READY)  ## a teacher, students distilled from it and their control, table and plot; offline
	HF_HUB_OFFLINE=1 $(BIN)/python launch.py experiment=demo
	@echo "to look at it in a browser:  $(BIN)/python -m forge workbench"

doctor: $(READY)  ## check this machine: one line per check, with the way out
	$(BIN)/python -m forge doctor

test: $(READY) lint  ## lint, types and every test (what CI runs)
	$(PYTEST)

test-fast: $(READY)  ## the tests that take seconds
	$(PYTEST) -m "not slow" -q

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

guide: $(READY)  ## make the guide's generated parts anew: the reference, what a run prints
	$(BIN)/python -m tests.support.guide

bench: $(READY)  ## measure side by side: plain transformers.Trainer, labels, a stored and a live teacher
	$(BIN)/python -m tests.benchmarks.throughput
	$(BIN)/python -m tests.benchmarks.distillation
	$(BIN)/python -m tests.benchmarks.checkpointing
	$(BIN)/python -m tests.benchmarks.runs_index

slurm-up:  ## start a SLURM of two nodes here, to play with (root, Debian)
	@tests/slurm_cluster.sh start
	@echo "for this shell:  eval \"\$$(tests/slurm_cluster.sh env)\""

slurm-down:  ## stop it and remove what it wrote
	@tests/slurm_cluster.sh stop

clean:  ## remove the venv and caches; outputs/ and multirun/ are kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info build
