# `make quickstart` and `make test` each make their own environment. PYTHON picks another interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint clean

# The environment stands for the files it was made from: it is made again when they change.
$(VENV)/.installed: pyproject.toml $(wildcard anomalib_fewshot/startup/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: $(VENV)/.installed ## CoftAD on four good pictures of solar cells
	$(BIN)/anomalib train --config configs/quickstart.yaml

test: $(VENV)/.installed ## the whole suite
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-all: $(VENV)/.installed ## and the heavier checks
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
