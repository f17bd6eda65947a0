# Everything runs in .venv, made here; nothing has to be activated.
#   make demo                                     needs no GPU
#   make install PYTHON=python3.12                another Python
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu    a smaller torch for a machine without a GPU
#   make test ARGS="tests/jobs -k mp4"            some of the tests

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/installed
# One process has all that starts clusters, another what needs none; which is which, says tests/conftest.py.
TEST := $(PY) -m pytest -n 2 --dist loadgroup

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo head test check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## a .venv with everything, at the versions in constraints.txt

demo: $(INSTALLED) ## make videos, encode, train, sample and judge: the whole way on one CPU
	$(VENV)/bin/latentmill demo $(ARGS)

head: $(INSTALLED) ## a Ray on this machine for `latentmill submit`; its dashboard is http://127.0.0.1:8265, `ray stop` ends it
	@(umask 077; $(VENV)/bin/ray get-auth-token --generate >/dev/null)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" RAY_AUTH_MODE=token $(VENV)/bin/ray start --head

test: $(INSTALLED) ## the tests, without the slow ones
	$(TEST) $(ARGS)

check: $(INSTALLED) ## what has to pass: style, types, tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(TEST) $(ARGS)

bench: $(INSTALLED) ## how fast it is here
	$(PY) -m tests.benchmarks $(ARGS)

clean: ## remove what make and the tools left, .venv and demo/ too
	rm -rf $(VENV) demo demo-videos build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What would fail late and obscurely is looked at first. torch goes in alone: only it may come from TORCH_INDEX.
WRONG_PYTHON = $(PYTHON) is $$($(PYTHON) -V 2>&1 | head -n 1); wanted Python 3.10, 3.11 or 3.12: make PYTHON=python3.12
NO_VENV = $(PYTHON) cannot make virtual environments; install what it needs, e.g. apt-get install python3-venv
NO_COMPILER = no C++ compiler; DeepSpeed on CPU compiles a small op; install g++, e.g. apt-get install g++
NO_HEADERS = no Python.h; DeepSpeed on CPU compiles a small op; install it, e.g. apt-get install python3-dev
HAS_HEADERS = import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 12)' 2>/dev/null || \
		{ echo "make: $(WRONG_PYTHON)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(NO_VENV)" >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "make: $(NO_COMPILER)" >&2; exit 1; }
	@$(PYTHON) -c '$(HAS_HEADERS)' 2>/dev/null || { echo "make: $(NO_HEADERS)" >&2; exit 1; }
	@echo "make: installing into $(VENV); this takes some minutes the first time"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -q torch -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) install -q -e '.[test]' -c constraints.txt
	$(VENV)/bin/latentmill setup
	@touch $@
