# make demo    set up, start the server, ask one composite question, stop what was started
# make test    set up, run every test          make check   style, types, stubs, language
# make bench   set up, run every benchmark     make clean   forget what was installed and compiled
# make test-install   what the README shows a new user, in an empty environment with an empty home
#
# Nothing is installed twice: each step leaves a stamp named after a hash of what it read, written last,
# so an interrupted step runs again and an unchanged one does not. Downloads and engines live in
# $COMPLLM_HOME (default: the user's cache directory) and survive `make clean`.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: demo test test-install check bench install prepare clean

PYTHON ?= python3.11
VENV ?= .venv
QUESTION ?= Is the atomic number of oxygen larger than the number of codons for leucine?

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMPS := $(VENV)/.stamps

PY_VERSION := $(shell $(PYTHON) -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifeq ($(PY_VERSION),)
$(error '$(PYTHON)' does not run or has no venv module: install Python 3.11 to 3.13 with venv, or name one with 'make PYTHON=python3.12')
endif

# What was asked for decides the dependencies, with the sources it decides the compiled part; settings of
# ruff, mypy and pytest, which stand below both in pyproject.toml, decide neither. A moved checkout needs
# new links.
DEPS_KEY := $(shell { sed '/^\[tool\./,$$d' pyproject.toml; cat constraints.txt; } | sha256sum | cut -c1-12)
BUILD_KEY := $(shell { echo "$(CURDIR)"; sed '/^\[tool\.pytest/,$$d' pyproject.toml; \
	cat constraints.txt runtime/CMakeLists.txt $$(find runtime/csrc -type f | sort); } | sha256sum | cut -c1-12)
VENV_STAMP := $(STAMPS)/venv-$(PY_VERSION)
DEPS_STAMP := $(STAMPS)/deps-$(PY_VERSION)-$(DEPS_KEY)
BUILD_STAMP := $(STAMPS)/build-$(PY_VERSION)-$(BUILD_KEY)
BENCH_STAMP := $(STAMPS)/bench-$(PY_VERSION)-$(DEPS_KEY)

install: | $(BUILD_STAMP)

# A folder that is no environment of this Python, or only half of one, is made anew.
$(VENV_STAMP):
	@if [ "$$($(PY) -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" != "$(PY_VERSION)" ]; then \
		echo "making $(VENV) with Python $(PY_VERSION)"; $(PYTHON) -m venv --clear $(VENV); fi
	@mkdir -p $(STAMPS) && rm -f $(STAMPS)/* && touch $@

# The build requirements stay in the environment, so that later builds of the C++ part are incremental.
$(DEPS_STAMP): | $(VENV_STAMP)
	$(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "cmake", "ninja", sep="\n")' \
		| $(PIP) install -c constraints.txt -r /dev/stdin
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@rm -f $(STAMPS)/deps-* $(STAMPS)/build-* $(STAMPS)/bench-* && touch $@ $(BUILD_STAMP)

$(BUILD_STAMP): | $(DEPS_STAMP)
	@[ -e $@ ] || { echo "building the C++ part"; $(PIP) install -q --no-build-isolation --no-deps -e .; }
	@rm -f $(STAMPS)/build-* && touch $@

$(BENCH_STAMP): | $(BUILD_STAMP)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev,bench]'
# Without what they ask for: that is torchvision, which would bring another torch.
	$(PIP) install --no-deps optimum-intel==2.2.0 optimum==2.3.0
	@touch $@

# Base model, encoder and engine; returns at once when they are there.
prepare: install
	@$(PY) -m compllm.cli.prepare

# A server that was running before is used and left running.
demo: install
	@if $(PY) -m compllm status >/dev/null 2>&1; then started=; else started=1; fi; \
	stop() { [ -z "$$started" ] || $(PY) -m compllm down; }; \
	trap stop EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	$(PY) -m compllm up && $(PY) -m compllm ask "$$QUESTION"
demo: export QUESTION := $(QUESTION)

# TEST_JOBS=2: two processes share the test files. With 0 it is one, where --pdb and -s work.
TEST_JOBS ?= 0

test: prepare
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# It makes an environment of its own; nothing of ours is used but pip's cache.
test-install:
	$(PYTHON) .ci/user_install.py $(USER_INSTALL_ARGS)

PROSE := *.md docs Makefile pyproject.toml .ci benchmarks build_scripts engines runtime tests triton_repo

check: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	find runtime/csrc -type f | xargs $(VENV)/bin/clang-format --dry-run -Werror
	$(VENV)/bin/codespell $(PROSE)
	$(PY) -m pytest -q tests/test_prose.py
	$(PY) -m pytest -q tests/test_core.py -k stub

# Hours; BENCH_ARGS=--quick proves in minutes that all of them run. Each starts the server that it needs.
# One that fails does not stop the others.
bench: prepare | $(BENCH_STAMP)
	@failed=; for script in benchmarks/*/bench_*.py; do name=$$(basename $$script .py); \
		folder=$$(basename $$(dirname $$script)); \
		echo "== $$name"; $(PY) -m benchmarks.$$folder.$$name $(BENCH_ARGS) || failed="$$failed $$name"; done; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis
