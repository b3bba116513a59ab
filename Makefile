# Everything runs from .venv, whichever environment is active; nothing but the package index is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SOURCES := app worker migrations tests examples benchmarks
PIP := $(PYTHON) -m pip --disable-pip-version-check --no-input --quiet

.PHONY: help demo test test-slow bench-engine bench-quality bench-durability bench-api chaos docs lint types imports check format install clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@echo "==> looking for Python 3.11 or newer"
	@python="$$(command -v python3.11 || command -v python3 || true)"; \
	if [ -z "$$python" ] || ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "error: Lethe needs Python 3.11 or newer on the PATH, found $${python:-none}" >&2; exit 1; \
	fi; \
	echo "    $$python"; \
	if [ ! -x $(PYTHON) ]; then echo "==> creating $(VENV)"; "$$python" -m venv $(VENV); fi
	@echo "==> installing Lethe and its libraries into $(VENV); torch makes the first time take minutes"
	@$(PIP) install -c constraints.txt -e '.[worker,embedded,dev]'
	@touch $@

demo: $(STAMP) ## Unlearn from a small adapter with the real service and check the numbers
	@$(VENV)/bin/lethe demo

test: $(STAMP) ## Run the tests
	@$(PYTHON) -m pytest -m 'not slow'

test-slow: $(STAMP) ## Run the long tests
	@$(PYTHON) -m pytest -m slow

bench-engine: $(STAMP) ## Speed and memory of a step against a weighted sum; ARGS="--json FILE"
	@$(PYTHON) -m benchmarks.engine $(ARGS)

bench-quality: $(STAMP) ## What every loss and combiner keeps and forgets; ARGS="--json FILE"
	@$(PYTHON) -m benchmarks.quality $(ARGS)

bench-durability: $(STAMP) ## What further training and rounding bring back; ARGS="--quick --json FILE"
	@$(PYTHON) -m benchmarks.durability $(ARGS)

bench-api: $(STAMP) ## Throughput, memory and latency of the API; ARGS="--json FILE"
	@$(PYTHON) -m benchmarks.api $(ARGS)

chaos: $(STAMP) ## Kill a working service at random; SEED=1 FAULTS=200 JSON=FILE
	@$(PYTHON) -m benchmarks.chaos --seed $(or $(SEED),1) --faults $(or $(FAULTS),200) $(if $(JSON),--json $(JSON))

docs: $(STAMP) ## Write the pages that are generated from the code
	@$(PYTHON) -m app.methods.reference > docs/losses.md
	@$(PYTHON) -m app.problems.reference > docs/api/problems.md
	@$(PYTHON) -m app.openapi.reference > docs/api/openapi.json

lint: $(STAMP) ## Check style and format
	@$(PYTHON) -m ruff check $(SOURCES)
	@$(PYTHON) -m ruff format --check $(SOURCES)

types: $(STAMP) ## Check types
	@$(PYTHON) -m mypy

imports: $(STAMP) ## Check who may import whom
	@$(VENV)/bin/lint-imports

check: lint types imports test ## Everything that has to pass

format: $(STAMP) ## Format the code and repair what can be repaired
	@$(PYTHON) -m ruff check --fix $(SOURCES)
	@$(PYTHON) -m ruff format $(SOURCES)

clean: ## Remove .venv and all caches; data in .lethe stays
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(SOURCES) -type d -name __pycache__ -prune -exec rm -rf {} +
