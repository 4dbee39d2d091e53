# Everything a person or a machine does here: `make help` lists it.
# Overridable: make PYTHON=python3.13 test; make VENV=/somewhere/venv demo.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := fl_shield strategies simulations tests
PYTEST_ARGS ?=

# Small models and small batches: one thread a process is fastest and gives the same sums everywhere.
export OMP_NUM_THREADS ?= 1
# After installation nothing here needs a network, a display or a word to anybody.
export HF_HUB_OFFLINE ?= 1
export HF_DATASETS_OFFLINE ?= 1
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all check format wheel clean distclean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed ## Attack and shield a federation on digits; the report is runs/demo/report.html
	$(BIN)/fl-shield simulate --preset demo --out runs/demo

test: check ## Check, then run the tests with coverage, all but the markers slow and gpu
	$(BIN)/python -m pytest -m "not slow and not gpu" --cov --cov-report=term $(PYTEST_ARGS)

test-all: check ## The same with the tests marked slow
	$(BIN)/python -m pytest -m "not gpu" --cov --cov-report=term $(PYTEST_ARGS)

check: $(VENV)/.installed-dev ## Check format, lint and types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Format the code and repair what lint can repair
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

wheel: $(VENV)/.installed-dev ## Build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info htmlcov .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## The same and .venv
	rm -rf $(VENV)

# One stamp file for what the product needs and one for what the developer needs beside it.
# setuptools comes first, pinned, so that the build needs no second environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fl_shield needs Python 3.11 or newer, and '$(PYTHON)' is none: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt "setuptools>=84,<85"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@
