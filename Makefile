# make demo   set up .venv and run the main job into runs/demo
# make test   set up .venv, check the code and run all tests
# make check  the checks alone
# make coverage   the tests again, and which lines they reach
# make faults   the whole suite of faults (hours; GPO_FAULTS=20: at most 20 of each kind a test), and docs/reliability.md of it
# make audit  known vulnerabilities and licences of what constraints.txt names, by tools in an environment of their own
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

.PHONY: demo test check coverage faults audit docs setup real-model vllm

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

FAULTS := benchmarks/results/faults.jsonl

faults: $(SETUP)
	rm -f $(FAULTS)
	GPO_FAULTS=$(or $(GPO_FAULTS),whole) GPO_FAULTS_LOG=$(FAULTS) $(BIN)/python -m pytest tests/faults
	$(BIN)/python benchmarks/reliability.py

# Names as packages write them. Of a licence that is copyleft for single files or libraries (MPL, LGPL) nothing spreads to users.
COPYLEFT := GPL-2.0-only;GPL-2.0-or-later;GPL-3.0-only;GPL-3.0-or-later;AGPL-3.0-only;AGPL-3.0-or-later;GPL;GPLv2;GPLv3;AGPL
COPYLEFT := $(COPYLEFT);GNU General Public License (GPL);GNU General Public License v2 (GPLv2);GNU General Public License v3 (GPLv3)
COPYLEFT := $(COPYLEFT);GNU General Public License v2 or later (GPLv2+);GNU General Public License v3 or later (GPLv3+)
COPYLEFT := $(COPYLEFT);GNU Affero General Public License v3;GNU Affero General Public License v3 or later (AGPLv3+)

audit: $(SETUP) .venv-audit/.set-up
	.venv-audit/bin/pip-licenses --python $(BIN)/python --from mixed --order license --ignore-packages gpo --fail-on "$(COPYLEFT)"
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

.venv-audit/.set-up:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 pip-licenses==5.5.5
	touch $@

docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

real-model: $(REAL_MODEL)/config.json

# What reads GGUF files is in a folder of its own: the project does not need it.
$(REAL_MODEL)/config.json: | $(SETUP)
	@test -x ../shared/models/real-model || { echo "What makes the model, ../shared/models/real-model, is not there. \
	Get it with: hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir $(REAL_MODEL)"; exit 1; }
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
