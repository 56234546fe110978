# make pong    set-up, then learn Pong on this machine (the main job)
# make test    set-up, then format, lint and type checks, and the tests with coverage
# make check   the checks alone
# make cluster-test   a real `ray up` over hosts in network namespaces: minutes, root, and Debian's iproute2,
#                     openssh-server, openssh-client and rsync
# make gpu-test       what the learner does on a GPU, against the CPU; skipped where there is none
# make chaos          kills and stops all processes of a Pong run, twenty minutes
# make soak-test      32 actors on this machine for some minutes
# make fuzz           a minute of Atheris for each reader of files and of what comes from elsewhere
# make growth-test    an hour of Pong at full speed: no process grows
# make venv    the set-up alone
#
# PYTHON=/path/to/python3.11 names the interpreter (3.11 or newer), ARGS="--seed 1" goes on to `drqn-dist train`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: pong test chaos cluster-test gpu-test soak-test growth-test fuzz check venv clean

pong: $(STAMP)
	$(BIN)/drqn-dist train --preset pong-cpu $(ARGS)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term --cov-fail-under=90

cluster-test: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster]'
	DRQN_CLUSTER_TEST=1 $(BIN)/python -m pytest tests/cluster -rs -s

gpu-test: $(STAMP)
	$(BIN)/python -m pytest tests/gpu -rs

chaos: $(STAMP)
	DRQN_CHAOS=1 $(BIN)/python -m pytest tests/chaos/test_everything.py -rs -s -n0

soak-test: $(STAMP)
	DRQN_SOAK_TEST=1 $(BIN)/python -m pytest tests/soak -rs -s

growth-test: $(STAMP)
	DRQN_GROWTH_TEST=1 $(BIN)/python -m pytest tests/soak/test_growth.py -rs -s -n0

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'atheris>=3.0,<4'
	for reader in fragment journal checkpoint snapshot config; do \
	  $(BIN)/python -m tests.fuzz $$reader -max_total_time=60 || exit 1; done

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict

venv: $(STAMP)

# Remade from nothing when the pins change, so that no package of an older set stays behind.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is missing or older:"; \
	  echo "install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; } >&2
	@echo "Setting up $(VENV) with the pinned packages of constraints.txt (a few minutes, once)"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "Set-up done"

clean:
	rm -rf $(VENV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache *.egg-info
