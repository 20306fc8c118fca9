# Every target is one command that also works without make: see README.md.
PYTHON ?= python3
VENV ?= .venv

.PHONY: env demo test soak
env:
	$(PYTHON) bootstrap.py env --venv $(VENV)
demo:
	$(PYTHON) bootstrap.py demo --venv $(VENV)
test:
	$(PYTHON) bootstrap.py test --venv $(VENV)
soak:
	$(PYTHON) bootstrap.py soak --venv $(VENV)
