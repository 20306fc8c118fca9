# Without make: run a target's lines by hand, in a shell where `source .venv/bin/activate` has been done.
PYTHON ?= python3
VENV ?= .venv
# `make env PINS=` installs the newest versions that requirements.txt allows instead of the tested ones.
PINS ?= --constraint constraints.txt
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS) --requirement
# The tests of one file stay in one process, because they share what its fixtures make.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: env demo test style suite coverage nightly reference
env: $(VENV)/product.stamp
demo: env
	$(BIN)/python -m demo $(FLAGS)
test: style suite
style: $(VENV)/tests.stamp
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
# FLAGS="tests/test_layers.py -x" runs one file and stops at its first failure.
suite: $(VENV)/tests.stamp
	$(PYTEST) $(FLAGS)
coverage: $(VENV)/tests.stamp
	$(PYTEST) --cov --cov-report term $(FLAGS)
# The whole suite with its slow tests: more killed runs, more damaged files, the benchmarks, MOABB.
nightly: $(VENV)/peers.stamp
	LABRAM_SOAK=20 LABRAM_FUZZ=1000 $(PYTEST) -m "" $(FLAGS)
# FLAGS="--eegmat DIR --eegmmidb DIR" says where the recordings are.
reference: env
	$(BIN)/python -m reference.cell $(FLAGS)

# An environment is made once, and brought up to date when the requirements change.
$(VENV)/product.stamp: requirements.txt constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) and 'error: use Python 3.10 to 3.13: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) requirements.txt
	touch $@
$(VENV)/tests.stamp: $(VENV)/product.stamp benchmarks/requirements.txt requirements-formats.txt
	$(INSTALL) benchmarks/requirements.txt
	touch $@
$(VENV)/peers.stamp: $(VENV)/tests.stamp requirements-peers.txt
	$(INSTALL) requirements-peers.txt
	touch $@
