# Commands for users and authors. Everything runs in .venv, which `make setup` builds once; it needs a package index only then.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NICE := OMP_WAIT_POLICY=PASSIVE TORCHINDUCTOR_COMPILE_THREADS=1 HF_HUB_OFFLINE=1
PYTEST := $(NICE) $(BIN)/python -m pytest -rs
# One process a core, each with one thread; tests of one file stay together, for they share fixtures, and so do files that share one (tests/conftest.py).
# files in the order of the folders, those of minutes first: by number of tests, the longest would come last
CORES := -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test whole slow bench tables lint types layers check torch-untouched clean

help:                ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

setup:               ## .venv with torch first, then this package and all it can use
	@want=$$(cat pyproject.toml constraints.txt | cksum); \
	if [ "$$(cat .venv/.ready 2>/dev/null)" = "$$want" ] && $(BIN)/python -c '' 2>/dev/null; then exit 0; fi; \
	set -e; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fourfold needs Python 3.11 or later, $(PYTHON) is older." >&2; \
	  echo "Name one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }; \
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv; \
	$(PIP) install -q -c constraints.txt torch==2.13.0; \
	$(PIP) install -q -c constraints.txt -e '.[all,bench,dev]'; \
	echo "$$want" > .venv/.ready

demo: setup          ## the main job on a real model: at most 10 minutes after installation
	@$(NICE) $(BIN)/fourfold demo

test: setup          ## the fast tests, on all cores; lists what it skipped and why
	$(PYTEST) $(CORES) --durations=15 tests

whole: setup         ## whole jobs, tens of seconds each: the main job killed, stopped and resumed, a technique from outside, the tour
	$(PYTEST) $(CORES) -m 'whole and not slow' --durations=5 tests

slow: setup          ## the tests that take minutes, and the property tests with new examples each time
	$(PYTEST) -m slow tests
	FOURFOLD_HYPOTHESIS=random $(PYTEST) $(CORES) -m 'hypothesis and not bench' tests

bench: setup         ## race the peers, write the figures that claims/ points to
	$(NICE) $(BIN)/python benchmarks/compress.py

tables: setup        ## every table and picture of README and docs, anew from benchmarks/results
	$(NICE) $(BIN)/python docs/refresh.py

lint: setup          ## ruff
	$(BIN)/ruff check .

types: setup         ## pyright
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

layers: setup        ## who may import whom
	$(PYTEST) tests/test_layers.py

torch-untouched: setup   ## pip, asked for every extra, must leave an installed torch alone (needs a package index)
	$(PYTEST) -m slow tests/test_torch.py

check: lint types layers test whole   ## all that must pass before a commit

clean:               ## forget .venv
	rm -rf .venv
