# Chaindock: `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= python
ARGS ?=
# Of pytest-xdist: a number, or auto (tests/conftest.py says how many that is).
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
engine: $(VENV)/dev.stamp ## start a Docker Engine for the tests (needs root on Debian), make its images
	@$(BIN)/python scripts/test_engine.py > $(ENGINE)

# --- use ---------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/run.stamp ## deploy a contract from its source and call it (DEMO=python|node|go|all)
	@$(BIN)/chaindock demo --contract $(DEMO)

# --- check -------------------------------------------------------------------------

.PHONY: test
test: engine ## all tests; missing tools skip tests, with a reason (with CI=true: fail them)
	@. $(ENGINE) && $(PYTEST)

.PHONY: quick
quick: $(VENV)/dev.stamp ## unit tests and rules of the repository: no engine, no network
	@$(PYTEST) tests/unit tests/meta

.PHONY: conformance
conformance: engine ## the suites that every back end must pass
	@. $(ENGINE) && $(PYTEST) tests/conformance

.PHONY: integration
integration: engine ## tests with a real engine, real shims and real toolchains
	@. $(ENGINE) && $(PYTEST) tests/integration

.PHONY: faults
faults: engine ## the long rounds: all faults three times, 20 kills, 200 random sequences (an hour or two)
	@. $(ENGINE) && CHAINDOCK_FAULT_ROUNDS=3 $(PYTEST) \
		tests/faults tests/integration/test_node_sigkill.py \
		tests/integration/test_ledger_sigkill.py

.PHONY: soak
soak: engine ## ten minutes each: many client applications while their contract is upgraded and killed; idle shims
	@. $(ENGINE) && CHAINDOCK_SOAK_S=600 $(BIN)/python -m pytest $(ARGS) \
		tests/integration/test_clients_soak.py tests/integration/test_shims_soak.py

.PHONY: bench
bench: engine ## benchmarks as ratios to a baseline of the same run (ARGS=NAME for one)
	@. $(ENGINE) && $(BIN)/python -m tests.bench $(ARGS)

.PHONY: fresh
fresh: engine ## follow the README in a container with only Python, make and git
	@. $(ENGINE) && $(BIN)/python scripts/fresh.py

.PHONY: lint
lint: $(VENV)/dev.stamp ## check the style (ruff)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

.PHONY: fmt
fmt: $(VENV)/dev.stamp ## format the code (ruff)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

.PHONY: types
types: $(VENV)/dev.stamp ## check the types (mypy)
	@$(BIN)/mypy

.PHONY: arch
arch: $(VENV)/dev.stamp ## check the layers of ARCHITECTURE.md (import-linter)
	@$(BIN)/lint-imports

.PHONY: cov
cov: engine ## all tests with branch coverage, one after another (slow)
	@. $(ENGINE) && $(BIN)/coverage run -m pytest && $(BIN)/coverage combine -q && $(BIN)/coverage report

.PHONY: reference
reference: $(VENV)/dev.stamp ## generate docs/reference from the code
	@$(BIN)/python scripts/gen_reference.py

.PHONY: requirements
requirements: $(VENV)/dev.stamp ## pin the dependencies again (needs uv)
	@$(BIN)/python scripts/pin.py

.PHONY: ci
ci: lint types arch fresh test ## all that CI runs, tests last

.PHONY: clean
clean: ## remove what the targets made here
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
