# make demo   records a real training program, replays it, writes the comparison page
# make test   checks everything: style, types, imports, C++ under sanitizers, Python, pages
# make test-sanitizers   of these only the C++ tests, under sanitizers
# make test-cuda-stub   PyTorch's own CUDA binary without a GPU: half a gigabyte to fetch, not in `test`
# All set up all they need on a bare machine with Python 3.11+, a C++20 compiler and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The tests must meet the installed package, not the folders it is made of, and so must mypy and
# import-linter, which look into the current folder first whatever they are told.
RUN := PYTHONSAFEPATH=1 $(BIN)
ELSEWHERE := cd $(VENV) &&
# Pinned versions hold in the isolated build environment too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SOURCES := $(shell git ls-files -co --exclude-standard \
             CMakeLists.txt recorders replay reports workbench)
CXX_SOURCES := $(filter %.cpp %.cu %.h,$(SOURCES)) $(shell git ls-files -co --exclude-standard tests/cpp)
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# //p' Makefile

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt $(SOURCES)
	$(BIN)/python -m pip install --quiet '.[record]'
	@touch $@

# Everything at once, so that the engine is built once.
$(VENV)/installed-for-tests: $(VENV)/bin/python pyproject.toml constraints.txt $(SOURCES)
	$(BIN)/python -m pip install --quiet '.[record,test,lint]'
	@touch $(VENV)/installed $@

.PHONY: demo
demo: $(VENV)/installed
	@mkdir -p demo
	$(BIN)/wb record --force -o demo/transformer.parquet examples/transformer_lm.py
	$(BIN)/wb info demo/transformer.parquet
	$(BIN)/wb replay --force demo/transformer.parquet --allocator all -o demo/results
	$(BIN)/wb report demo/results -o demo/report.html
	@echo "The page: $(CURDIR)/demo/report.html"

.PHONY: test
test: lint test-sanitizers browser
	$(RUN)/python -m pytest -n logical --maxprocesses=8 --dist worksteal

.PHONY: lint
lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(ELSEWHERE) bin/mypy --config-file ../pyproject.toml -p workbench
	$(ELSEWHERE) bin/lint-imports --config ../pyproject.toml

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer, and those with threads under
# ThreadSanitizer; CMakePresets.json says how.
.PHONY: test-sanitizers
test-sanitizers: $(VENV)/installed-for-tests
	for preset in sanitize thread; do \
	  $(BIN)/cmake --preset $$preset > /dev/null && \
	  $(BIN)/cmake --build --preset $$preset && \
	  $(BIN)/ctest --preset $$preset || exit 1; \
	done

# `caching` against PyTorch's CUDA binary, which needs no GPU but an environment of its own: a torch
# without the libraries it is installed with cannot be imported. The traces are recorded in the other.
CUDA_VENV := .venv-cuda
$(CUDA_VENV)/bin/python:
	$(PYTHON) -m venv $(CUDA_VENV)

$(CUDA_VENV)/torch: $(CUDA_VENV)/bin/python constraints.txt
	$(CUDA_VENV)/bin/python -m pip install --quiet --no-deps \
	  "torch===$$(sed -n 's/^torch==//p' constraints.txt)" nvidia-cuda-runtime nvidia-cuda-crt
	@touch $@

$(CUDA_VENV)/installed: $(CUDA_VENV)/torch pyproject.toml $(SOURCES)
	$(CUDA_VENV)/bin/python -m pip install --quiet '.[test]'
	@touch $@

$(CUDA_VENV)/traces: $(VENV)/installed examples/*.py
	@mkdir -p $@
	for example in transformer_lm conv_net variable_length; do \
	  $(BIN)/wb record --force -o $@/$$example.parquet examples/$$example.py --steps 6 || exit 1; \
	done
	@touch $@

# One file after the other: a process has as many devices as PyTorch has room for, and no more.
.PHONY: test-cuda-stub
test-cuda-stub: $(CUDA_VENV)/installed $(CUDA_VENV)/traces
	for file in $$(grep -l 'mark\.cuda_stub' tests/*/test_*.py); do \
	  PYTHONSAFEPATH=1 WORKBENCH_EXAMPLE_TRACES=$(CURDIR)/$(CUDA_VENV)/traces $(CUDA_VENV)/bin/python \
	    -m pytest -m cuda_stub -n logical --maxprocesses=8 --dist worksteal $$file || exit 1; \
	done

# The pages are tested in a real browser; where none can be installed those tests say so and are
# skipped.
.PHONY: browser
browser:
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
	  && { apt-get update && apt-get install --yes --no-install-recommends chromium; } > /dev/null; } \
	  || echo "No Chromium, and none could be installed: the page tests will be skipped"
