# Everything runs in one .venv that the first target to need it sets up.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python -m

.PHONY: quickstart test test-slow lint clean

quickstart: $(STAMP)
	$(RUN) sivdnas_tf run --config=configs/quickstart.py --workdir=runs/quickstart

test: lint
	$(RUN) pytest -m "not slow" --numprocesses=auto --maxprocesses=4 --dist=loadgroup

test-slow: $(STAMP)
	$(RUN) pytest -m slow --numprocesses=auto --maxprocesses=4 --dist=load

lint: $(STAMP)
	$(RUN) ruff check .
	$(RUN) ruff format --check .

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
