# Every target also works without make: by the commands below it (README.md, reference/README.md).
PYTHON ?= python3
VENV ?= .venv

.PHONY: env demo test coverage soak reference
env:
	$(PYTHON) bootstrap.py env --venv $(VENV)
demo:
	$(PYTHON) bootstrap.py demo --venv $(VENV)
test:
	$(PYTHON) bootstrap.py test --venv $(VENV)
coverage:
	$(PYTHON) bootstrap.py coverage --venv $(VENV)
soak:
	$(PYTHON) bootstrap.py soak --venv $(VENV)
# Folders and settings: make reference FLAGS="--eegmat DIR --eegmmidb DIR"
reference:
	$(PYTHON) bootstrap.py env --venv $(VENV)
	PYTHON=$(VENV)/bin/python bash reference/run.sh $(FLAGS)
