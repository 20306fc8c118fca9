# What each target runs also works by hand, without make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A file's tests stay together, because they share what its fixtures made.
PARALLEL = -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: env demo test style nightly coverage reference
env: $(VENV)/made
$(VENV)/made: requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.txt
	touch $@
$(VENV)/tests-made: $(VENV)/made benchmarks/requirements.txt
	$(PIP) --requirement benchmarks/requirements.txt
	touch $@
demo: env
	$(BIN)/python -m demo
style: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
test: style $(VENV)/tests-made
	$(BIN)/python -m pytest $(PARALLEL)
coverage: $(VENV)/tests-made
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report term
nightly: $(VENV)/tests-made
	LABRAM_SOAK=20 $(BIN)/python -m pytest tests/test_recovery.py
# Folders and settings: make reference FLAGS="--eegmat DIR --eegmmidb DIR"
reference: env
	PYTHON=$(BIN)/python bash reference/run.sh $(FLAGS)
