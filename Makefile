# Chaindock: `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= python
ARGS ?=
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) $(ARGS)
# Engine and images for tests, as `export NAME=VALUE` lines; empty where there is none.
ENGINE := $(if $(filter /%,$(VENV)),,./)$(VENV)/engine.env

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- set-up ------------------------------------------------------------------------

$(VENV)/run.stamp: requirements/run.txt pyproject.toml
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/run.txt
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --requirements requirements/dev.txt
	@touch $@ $(VENV)/run.stamp

.PHONY: setup
setup: $(VENV)/dev.stamp ## make the virtual environment with all tools

.PHONY: engine
engine: $(VENV)/dev.stamp ## start a Docker Engine for the tests (root, Debian) and make base images
	@$(BIN)/python scripts/test_engine.py > $(ENGINE)

# --- use ---------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/run.stamp ## the main job: a contract from source to answered call (DEMO=python|node|go|all)
	@$(BIN)/chaindock demo --contract $(DEMO)

# --- check -------------------------------------------------------------------------

.PHONY: test
test: engine ## all tests; what a machine lacks is skipped with a reason (CI=true: fails)
	@. $(ENGINE) && $(PYTEST)

.PHONY: quick
quick: $(VENV)/dev.stamp ## the fast part of the tests: no engine, no network
	@$(PYTEST) tests/unit tests/meta

.PHONY: conformance
conformance: engine ## one suite per contract, for every implementation
	@. $(ENGINE) && $(PYTEST) tests/conformance

.PHONY: integration
integration: engine ## real engine, real shims, real toolchains
	@. $(ENGINE) && $(PYTEST) tests/integration

.PHONY: faults
faults: engine ## break everything, again and again: all faults, 200 random sequences (an hour or two)
	@. $(ENGINE) && CHAINDOCK_SEQUENCES=200 CHAINDOCK_FAULT_ROUNDS=3 $(PYTEST) tests/faults

.PHONY: bench
bench: engine ## ratios against something in the same run (ARGS=NAME for some)
	@. $(ENGINE) && $(BIN)/python -m tests.bench $(ARGS)

.PHONY: fresh
fresh: engine ## a bare container with Python, make and git follows the README
	@. $(ENGINE) && $(BIN)/python scripts/fresh.py

.PHONY: lint
lint: $(VENV)/dev.stamp ## style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: fmt
fmt: $(VENV)/dev.stamp ## rewrite the code to the style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

.PHONY: types
types: $(VENV)/dev.stamp ## static types
	@$(BIN)/mypy

.PHONY: arch
arch: $(VENV)/dev.stamp ## the layers of ARCHITECTURE.md
	@$(BIN)/lint-imports

.PHONY: cov
cov: engine ## tests with branch coverage
	@. $(ENGINE) && $(BIN)/coverage run -m pytest && $(BIN)/coverage combine -q && $(BIN)/coverage report

.PHONY: reference
reference: $(VENV)/dev.stamp ## write docs/reference from the code
	@$(BIN)/python scripts/gen_reference.py

.PHONY: requirements
requirements: $(VENV)/dev.stamp ## pin the dependencies again (needs uv)
	@$(BIN)/python scripts/pin.py

.PHONY: ci
ci: lint types arch fresh test ## everything CI runs, tests last

.PHONY: clean
clean: ## remove what the targets made here
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
