# make demo   set up .venv and run the main job into runs/demo
# make test   set up .venv, check the code and run all tests
# make check  the checks alone
# make coverage   the tests again, and which lines they reach
# make docs   the docs site into site/
# make real-model   a small pretrained model for the tests of real models, once, into a cache folder
# make vllm   a vLLM server for CPUs in an environment of its own, .venv-vllm; the tests that need one run from then on

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SETUP := .venv/.set-up

ifndef GPO_DATA
ifneq ($(wildcard ../shared/data),)
export GPO_DATA := $(abspath ../shared/data)
endif
endif

# A folder of a model of one's own, or where `make real-model` puts one.
export GPO_CACHE ?= $(HOME)/.cache/gpo
REAL_MODEL := $(or $(GPO_REAL_MODEL),$(GPO_CACHE)/models/smollm2)

.PHONY: demo test check coverage docs setup real-model vllm

demo: $(SETUP)
	$(BIN)/gpo run runs/demo $(if $(GPO_DATA),--data "$(GPO_DATA)")

# A test file is one process's; each computes on one thread, so that processes do not wait for each other's cores.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

coverage: $(SETUP)
	$(BIN)/python -m pytest --cov --cov-report=
	$(BIN)/coverage report --skip-covered --sort=cover

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

real-model: $(REAL_MODEL)/config.json

# What reads GGUF files is in a folder of its own: the project does not need it.
$(REAL_MODEL)/config.json: | $(SETUP)
	@test -x ../shared/models/real-model || { echo "What makes the model, ../shared/models/real-model, is not there. \
	Get it with: huggingface-cli download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir $(REAL_MODEL)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$(GPO_CACHE)/gguf" gguf==0.19.0
	PYTHONPATH="$(GPO_CACHE)/gguf" $(BIN)/python ../shared/models/real-model smollm2 "$(REAL_MODEL)"

setup: $(SETUP)

vllm: .venv-vllm/.set-up

# vLLM is built for one torch, and lists packages for sound and pictures that language models do without.
.venv-vllm/.set-up: requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.txt
	touch $@

# The stamp comes last, so that a set-up that was cut short is done again.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
