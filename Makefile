# Each target makes .venv first and installs the pinned packages: nothing else has to be run before.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
PIP_ARGS ?=
BIN := .venv/bin
EDGEBENCH := $(BIN)/edgebench
SHELL := /bin/bash

.PHONY: setup demo test test-devices lint benchmark-fidelity benchmark-small benchmark-push clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"edgebench needs Python 3.11 to 3.13; $(PYTHON) is {v[0]}.{v[1]}. Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv || { echo "Making .venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[all]' $(PIP_ARGS)
	@touch $@

.venv/.ready-dev: .venv/.ready
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' $(PIP_ARGS)
	@touch $@

# The main job: four forms of the shipped model, in three formats, measured on this machine.
demo: .venv/.ready
	$(EDGEBENCH) bench --run demo --model digits_cnn --seeds 3 \
		--recipe fp32 --recipe int8 --recipe pruned --recipe pruned_int8

lint: .venv/.ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup tests

# Faults, arm userlands and an arm64 machine; as root on Debian, and skipped with the reason elsewhere.
test-devices: .venv/.ready-dev
	tests/devices/packages.sh
	$(BIN)/pytest -m devices -n 3 --dist loadgroup tests/devices

# What the agents add to the bare runtimes, and what the shipped recipes save over five seeds.
benchmark-fidelity: .venv/.ready-dev
	$(BIN)/python benchmarks/fidelity.py

benchmark-small: .venv/.ready-dev
	$(BIN)/python benchmarks/small.py

benchmark-push: .venv/.ready-dev
	$(BIN)/python benchmarks/push.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
