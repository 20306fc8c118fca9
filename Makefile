# Every target is one command that also works without make: see README.md.
PYTHON ?= python3
VENV ?= .venv

.PHONY: env demo test
env:
	$(PYTHON) bootstrap.py env --venv $(VENV)
demo:
	$(PYTHON) bootstrap.py demo --venv $(VENV)
test:
	$(PYTHON) bootstrap.py test --venv $(VENV)
