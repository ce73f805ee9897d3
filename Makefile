# `make quickstart` and `make test` each make their own environment. PYTHON picks another interpreter (3.10 to 3.13).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-nightly coverage lint docs tables dist upstream clean

# The environment stands for the files it was made from: it is made again when they change.
$(VENV)/.installed: pyproject.toml $(wildcard anomalib_fewshot/startup/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The site's packages are added to it where the site is built, and nowhere else.
$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# So are those that build and check a release.
$(VENV)/.release: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet build twine
	touch $@

quickstart: $(VENV)/.installed ## CoftAD on four good pictures of solar cells
	$(BIN)/anomalib train --config configs/quickstart.yaml

test: $(VENV)/.installed ## the whole suite
	$(BIN)/python -m pytest -m "not slow and not nightly" -n auto --dist worksteal --durations=25

test-all: $(VENV)/.installed ## and the heavier checks
	$(BIN)/python -m pytest -m "not nightly"

test-nightly: $(VENV)/.installed ## one member of each timm family as a backbone
	$(BIN)/python -m pytest -m nightly tests/integration/test_timm_families.py

coverage: $(VENV)/.installed ## the suite, and the lines that it does not reach
	$(BIN)/python -m pytest -m "not slow and not nightly" -n auto --dist worksteal --cov --cov-report=term-missing:skip-covered

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/deptry .
	$(BIN)/codespell
	$(BIN)/yamllint --strict .

docs: $(VENV)/.docs ## the site, in build/docs
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs

tables: $(VENV)/.installed ## the result tables of README and documentation, from docs/results
	$(BIN)/python docs/results/make_tables.py

dist: $(VENV)/.release ## the files of a release, in dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

upstream: $(VENV)/.installed ## what pull requests to anomalib would hold, in build/upstream
	$(BIN)/python docs/upstream/make_kit.py

clean:
	rm -rf $(VENV) build dist docs/auto_gallery docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache

.PHONY: bench-smoke gpu-check

bench-smoke: $(VENV)/.installed ## accuracy and relative cost of six models, beside the committed values
	$(BIN)/python tests/guard/bench_smoke.py

gpu-check: $(VENV)/.installed ## every model on a GPU, beside the CPU
	$(BIN)/python tests/guard/gpu_check.py
