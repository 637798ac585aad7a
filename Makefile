# make demo   set up .venv and run the main job into runs/demo
# make test   set up .venv, check the code and run all tests
# make check  the checks alone
# make coverage   the tests again, and which lines they reach
# make docs   the docs site into site/

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SETUP := .venv/.set-up

ifndef GPO_DATA
ifneq ($(wildcard ../shared/data),)
export GPO_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: demo test check coverage docs setup

demo: $(SETUP)
	$(BIN)/gpo run runs/demo $(if $(GPO_DATA),--data "$(GPO_DATA)")

test: check
	$(BIN)/python -m pytest

coverage: $(SETUP)
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage report --skip-covered --sort=cover

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

setup: $(SETUP)

# The stamp comes last, so that a set-up that was cut short is done again.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
