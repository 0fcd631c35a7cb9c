# Requires only Python 3.11 or newer, and make.

# If this were set, each process would compile the project's modules again.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PARALLEL = --numprocesses 4 --dist loadfile --no-loadscope-reorder

PAGES = $(shell find templates tasks_app/templates -name '*.html')

.DEFAULT_GOAL := help
.PHONY: help run test test-quick test-postgresql test-sqlite coverage chaos lint format test-matrix clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.demo ## Serve the demonstration site with a worker, on PORT (8000)
	@exec $(BIN)/python -m project.run

test: test-postgresql test-sqlite ## Run the tests, on PostgreSQL and on SQLite; ARGS="-k worker" picks some

test-quick: $(VENV)/.dev ## Run the tests that start no process and no browser, on SQLite
	$(BIN)/python -m pytest -m "not browser and not slow" $(PARALLEL) $(ARGS)

# Each database has its own cache of failed tests, for ARGS=--last-failed.
test-postgresql: $(VENV)/.dev
	TEST_DATABASE=postgresql $(BIN)/python -m pytest -o cache_dir=.pytest_cache/postgresql \
	    -m "not browser and not once" $(PARALLEL) $(ARGS)

test-sqlite: $(VENV)/.dev
	$(BIN)/python -m pytest -o cache_dir=.pytest_cache/sqlite $(PARALLEL) $(ARGS)

coverage: $(VENV)/.dev ## Run the tests on SQLite and report the uncovered lines
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(PARALLEL) $(ARGS)

chaos: $(VENV)/.dev ## Kill some 560 processes under load and check that nothing is lost (15 minutes)
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(VENV)/.dev ## Check style, types, templates, migrations and settings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/djade --target-version 5.2 --check $(PAGES)
	[ ! -x $(BIN)/biome ] || $(BIN)/biome ci
	$(BIN)/python -m tests.prose
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check --fail-level WARNING

format: $(VENV)/.dev ## Format code and templates
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/djade --target-version 5.2 $(PAGES)
	[ ! -x $(BIN)/biome ] || $(BIN)/biome format --write

test-matrix: ## Run the tests on the oldest and newest supported versions
	@$(MAKE) --no-print-directory .matrix PY=3.11 DJANGO=5.2
	@$(MAKE) --no-print-directory .matrix PY=3.13 DJANGO=6.1

clean: ## Remove installed and built files; keep data/
	rm -rf $(VENV) .venv-* build dist *.egg-info .coverage htmlcov
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip runs only after a change of pyproject.toml.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.13")'
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

# $(call install,EXTRA)
define install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    echo "$(VENV) is incomplete: it has no pip. Remove it, and run make again: rm -r $(VENV)" >&2; \
	    exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]' 2>$(VENV)/pip.log || { \
	    if grep -qE 'NewConnectionError|NameResolution|ConnectTimeout|ProxyError|from versions: none' $(VENV)/pip.log; then \
	        echo "The package index cannot be reached, and the first run needs it. Go online and run" \
	            "make again; pip's own words are in $(VENV)/pip.log." >&2; \
	    else cat $(VENV)/pip.log >&2; fi; \
	    exit 1; }
endef

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV). The first time takes a minute."
	$(call install,demo)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV). The first time takes some minutes."
	$(call install,dev)
	@touch $@ $(VENV)/.demo

# One end of the range: the newest Python PY on the PATH or in pyenv, with Django DJANGO.
.PHONY: .matrix
.matrix: MATRIX_VENV = .venv-$(PY)-django$(DJANGO)
.matrix:
	@python=$$( { ls -d $(HOME)/.pyenv/versions/$(PY).*/bin/python$(PY) 2>/dev/null | sort -V -r; \
	    command -v python$(PY); } | while read -r one; do \
	        "$$one" -c 'import venv' 2>/dev/null && echo "$$one" && break; done); \
	if [ -z "$$python" ]; then \
	    echo "Python $(PY) is missing: put python$(PY) on the PATH, or run pyenv install $(PY)." >&2; \
	    exit 1; \
	fi; \
	echo "Python $(PY) ($$python), Django $(DJANGO)"; \
	[ -x $(MATRIX_VENV)/bin/python ] || "$$python" -m venv $(MATRIX_VENV); \
	$(MATRIX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[dev]' 'django~=$(DJANGO).0' && \
	$(MATRIX_VENV)/bin/python -m pytest $(PARALLEL) $(ARGS)
