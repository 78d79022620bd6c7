# Stentor: `make up` starts the server, `make test` runs the whole suite. Nothing is installed outside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.locked
DEV_STAMP := $(VENV)/.locked-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: up setup dev test check fix bench soak kills lock docs clean

up: setup
	@$(BIN)/stentor up

setup: $(STAMP)

dev: $(DEV_STAMP)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stentor needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make PYTHON=/path/to/python3.11 up")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(VENV)/bin/python requirements/runtime.txt pyproject.toml
	$(PIP) install -q --require-hashes -r requirements/runtime.txt
	$(PIP) install -q --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): $(STAMP) requirements/dev.txt
	$(PIP) install -q --require-hashes -r requirements/dev.txt
	@touch $@

test: dev
	# A test that fails gets a second try, and is named in the summary if it needed one: each of those is a defect, too.
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not soak' --reruns 1 -r fEsR

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m stentor.cli.reference --check docs/reference

fix: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m stentor.cli.reference docs/reference

docs: dev
	$(BIN)/python -m stentor.cli.reference docs/reference

bench: dev
	$(BIN)/python -m bench
	$(BIN)/python -m bench.hearing
	$(BIN)/python -m bench.speaking

soak: dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m soak
	$(BIN)/python -m tests.books.kills

kills: dev
	$(BIN)/python -m tests.books.kills

lock:
	uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml requirements/build.in -o requirements/runtime.txt
	uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml requirements/build.in --group dev -o requirements/dev.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
