# Each target works alone on a fresh machine: it makes .venv itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The tests start hundreds of processes from these sources: without bytecode each of them compiles them anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check format lint types install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,fast,dev]'
	touch $@

demo: install
	$(BIN)/grid demo

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
