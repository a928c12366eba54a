# Commands of the project. `make` or `make help` lists them.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PYTHON ?= python3
READY := .venv/.ready
# the programs in a .venv that was moved or copied run the code at its old path
MOVED := $(shell test -L .venv -o ! -f $(READY) || grep -qsF " $(CURDIR)/.venv" .venv/pyvenv.cfg || echo moved)
PARALLEL := --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help moved setup repro back test test-slow test-all test-full lint ui sweep promote sync page bench campaign docs

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt $(MOVED)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "MiniGPT needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv $(MOVED:moved=--clear) .venv
	@echo "installing packages into .venv; this takes minutes without output"
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(READY) ## create .venv with all packages

repro: setup $(RECIPE:%=recipes/%) ## run the pipeline; RECIPE=fast uses the parameters of recipes/fast
	$(if $(RECIPE),dvc exp run $(addprefix -S ,$(shell cat recipes/$(RECIPE))),dvc repro)
	$(if $(RECIPE),,python -m pipeline.tools.baseline)
	python -m pipeline.tools.summary

back: setup ## go back to the results of `make repro` after experiments; saves the present state first
	python -m pipeline.tools.back

test: setup ## run the fast tests, in about 4 minutes on two cores
	python -m pytest $(PARALLEL)

test-slow: setup ## run only the tests that `make test` leaves out, at reduced count
	python -m pytest $(PARALLEL) --all -m slow

test-all: setup ## run all tests, the costly ones at reduced count
	python -m pytest $(PARALLEL) --all

test-full: setup ## run all tests at full count, in about 25 minutes
	python -m pytest $(PARALLEL) --full

lint: setup ## check style, spelling and types
	ruff check . && ruff format --check . && codespell && mypy && nbstripout --verify examples/*.ipynb

ui: setup ## compare the tracked runs in the browser; PORT=5001 uses another port
	python -m pipeline.tools.ui

sweep: setup ## search for better parameters; ARGS="train.learning_rate=3e-4..1e-2 --trials 20"
	python -m pipeline.tools.sweep $(ARGS)

promote: setup ## make this model the champion if it is better; EXP=name: the model of an experiment
	python -m pipeline.tools.promote $(EXP)

sync: setup ## upload missing runs to the tracking store
	python -m pipeline.tools.sync

page: setup ## build the page of the model in page/; OUT=… uses another folder
	minigpt-cli page $(OUT)

bench: setup ## measure the speed of tokenization against other libraries
	python benchmarks/tokenization.py

campaign: setup ## go on trying to break MiniGPT, by numbered cases; NAME=damage, faults, hostile, kills, params or stores, MINUTES=60
	PYTHONPATH=tests:. python tests/campaigns/campaign.py $(NAME) --minutes $(or $(MINUTES),60)

docs: setup ## generate docs/cli.md and the pictures of the guide, which show the current model
	typer minigpt.cli.app utils docs --name minigpt-cli --output docs/cli.md
	python -m pipeline.tools.pictures
