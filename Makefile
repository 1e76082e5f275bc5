# make demo   trains and evaluates a small network on generated scenes, writes a report (5 to 14 minutes on 2 CPU cores)
# make test   runs the tests, the linter and the type checker, and builds the documentation
# make test-all  the same, with the long tests
# make docs   builds the documentation alone, as a site in site/
# make wheel  builds the package in dist/, installs the wheel in an empty environment and segments an image with it
# make hooks  lets git run the checks of .pre-commit-config.yaml before each commit
# make mutants PART=FILE TESTS=FILE [SAMPLE=N]  lists small changes of a module that its tests miss (CONTRIBUTING.md)
# make lock   updates uv.lock after the dependencies in pyproject.toml have changed
# make clean  removes the environment, what was built and what the demo wrote
#
# Variables: PYTHON=python3.12 (>= 3.11), VENV=.venv, DEMO=runs/demo, JOBS=3 (processes of the tests, each up to 3 GB)

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
JOBS ?= 3
RUN = $(VENV)/bin/python

.PHONY: help demo test test-all pytest lint types docs wheel hooks lock mutants clean
.DEFAULT_GOAL := help
SHELL := bash

help:
	@grep '^# make' Makefile | sed 's/^# //'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "This needs Python >= 3.11; '$(PYTHON)' is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	@echo "== making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "== installing the package and what it needs into $(VENV) (about a minute)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "== installing the package and what its tests need into $(VENV) (about a minute)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# Use huge pages for the memory that XLA allocates at every step: faster on a CPU (docs/training.md).
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/.installed
	@echo "== 1/2 training configs/synthetic.py on generated scenes; workdir $(DEMO)"
	@$(RUN) -m s2rm_jax.train --config configs/synthetic.py --workdir $(DEMO)
	@echo "== 2/2 evaluating on held-out scenes and writing the report"
	@$(RUN) -m s2rm_jax.evaluate --workdir $(DEMO) --split test --gallery 16
	@echo "== done: open $(DEMO)/eval-test/index.html for tables, figures and held-out images with true and predicted masks"
	@echo "   next: . $(VENV)/bin/activate, and segment an image: see README.md"

test-all: PYTEST_FLAGS = --long
test test-all: lint types docs pytest
	@echo "== done: style, types and tests pass; the environment is $(VENV)"

pytest: $(VENV)/.installed-dev
	@echo "== running the tests"
	@$(RUN) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	@echo "== checking style"
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache >/dev/null || { $(VENV)/bin/lint-imports --no-cache; exit 1; }
	@$(RUN) -m docs.check_links
	@PATH="$(abspath $(VENV))/bin:$$PATH" actionlint
	@$(VENV)/bin/uv lock --check --offline >/dev/null 2>&1 || { echo "uv.lock is out of date. Run: make lock"; exit 1; }

types: $(VENV)/.installed-dev
	@echo "== checking types"
	@$(RUN) -m mypy

docs: $(VENV)/.installed-dev
	@echo "== building the documentation"
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict

wheel: $(VENV)/.installed-dev
	@echo "== building the package and using it in an empty environment"
	@rm -rf dist
	@$(VENV)/bin/uv build --quiet --python $(RUN)
	@empty=$$(mktemp -d) && trap 'rm -rf "$$empty"' EXIT && $(RUN) -m venv "$$empty/venv" && \
		"$$empty/venv/bin/pip" install --quiet --disable-pip-version-check dist/*.whl && \
		cd "$$empty" && venv/bin/s2rm predict --out out

hooks: $(VENV)/.installed-dev
	@$(RUN) -m pre_commit install

lock: $(VENV)/.installed-dev
	@$(VENV)/bin/uv lock

mutants: $(VENV)/.installed-dev
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	@PYTHON=$(RUN) tests/mutants.sh $(PART) "$(TESTS)" $(SAMPLE)

clean:
	rm -rf $(VENV) $(DEMO) site build dist
