# make demo   installs into .venv, trains both demo stages on the CPU, edits a clip
# make test   all tests but the drills           make test-fast  unit tests, stops at the first failure
# make test-slurm   the drills: faults on a local Slurm cluster; needs root and, the first time, apt-get
# make gpu-check   on a machine with a GPU: its tests, and what is measured there
# make docs   the documentation as a site, build/site/index.html; a broken link is an error
# make lint   format, style, types, import directions, shell scripts, docs          make format  rewrites
# Python is $VIRTUAL_ENV's, else ./.venv's, which is made from $BASE_PYTHON.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv install install-dev demo test test-fast test-slurm gpu-check reference docs lint format

BASE_PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
# With a GPU the ranges of pyproject.toml decide; without one, versions that are known to work together.
CONSTRAINTS := $(if $(shell nvidia-smi -L 2>/dev/null),,-c constraints/cpu.txt)
PIP_INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
SOURCES := sama_mega kernels data tests docs/conf.py setup.py
SCRIPTS := .ci/run $(wildcard slurm/*.sh)

# A stamp holds the clone that was installed: another clone in the same environment installs itself again.
STAMP := $(VENV)/.sama-mega-installed
DEV_STAMP := $(VENV)/.sama-mega-dev-installed
INPUTS := $(PYTHON) pyproject.toml setup.py constraints/cpu.txt
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP) $(DEV_STAMP)
endif

help:
	@sed -n 's/^# //p' Makefile | head -n 7

venv: $(PYTHON)
install: $(STAMP)
install-dev: $(DEV_STAMP)

$(PYTHON):
	@$(BASE_PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed: make BASE_PYTHON=python3.11 ..." >&2; exit 2; }
	$(BASE_PYTHON) -m venv $(VENV)

$(STAMP): $(INPUTS)
	$(PIP_INSTALL) -e .
	@echo "$(CURDIR)" > $(STAMP)

$(DEV_STAMP): $(INPUTS)
	$(PIP_INSTALL) -e '.[dev]'
	@echo "$(CURDIR)" > $(STAMP)
	@echo "$(CURDIR)" > $(DEV_STAMP)

demo: $(STAMP)
	@$(PYTHON) -m sama_mega.commands.demo $(DEMO_ARGS)

# What always has several ranks at work uses the cores already; the rest runs in workers, a file in one of them.
TEST_WORKERS ?= 2
IN_WORKERS := -n $(TEST_WORKERS) --dist loadfile
WITH_RANKS := tests/distributed tests/slurm
THE_REST := tests/unit tests/end_to_end tests/parity tests/gpu

test: $(DEV_STAMP)
	@status=0; \
	$(PYTHON) -m pytest $(WITH_RANKS) $(TEST_ARGS) || status=$$?; \
	$(PYTHON) -m pytest $(THE_REST) $(IN_WORKERS) $(TEST_ARGS) || status=$$?; \
	exit $$status

test-fast: $(DEV_STAMP)
	@$(PYTHON) -m pytest tests/unit -x -q -m "not slow" $(IN_WORKERS) $(TEST_ARGS)

test-slurm: $(DEV_STAMP)
	@$(PYTHON) -m pytest tests/slurm -m drill $(TEST_ARGS)

# Installs nothing: a machine with a GPU may have no network, and its packages on PYTHONPATH.
GPU_PYTHON ?= $(if $(wildcard $(PYTHON)),$(PYTHON),python3)
gpu-check:
	@$(GPU_PYTHON) -m tests.gpu.check $(GPU_CHECK_ARGS)

# The pages that come from the code; tests/unit/commands/test_reference.py holds them to it.
reference: $(DEV_STAMP)
	@$(PYTHON) -m sama_mega reference docs

# Every page is read anew (-E), so that no warning is missed; nothing is fetched.
docs: $(DEV_STAMP)
	$(BIN)/sphinx-build -q -E -W --keep-going -c docs . build/site

lint: $(DEV_STAMP) docs
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/shellcheck $(SCRIPTS)

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
