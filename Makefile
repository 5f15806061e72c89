# SPDX-License-Identifier: LGPL-2.1-or-later
# make demo, make test: everything on a fresh Debian with the packages the README lists.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where a journal lives is memory (/run), so tests keep theirs in memory too, where there is some.
TEMPROOT := $(shell test -w /dev/shm && echo /dev/shm || echo /tmp)
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: demo test lint lint-types oracle prototype clean help

help:
	@echo "make demo | test | test-all | lint | docs | dist | wheels | deb | release-check | ansible | downstream"
	@echo "make lab | lab-2026 | soak | bench | fuzz | sanitize | oracle | prototype | clean"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp a purpose: demo needs no test tools, and nothing is installed twice.
$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[tools]'
	@touch $@

$(VENV)/.test: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check setuptools wheel build -e '.[tools,test]'
	@touch $@ $(VENV)/.demo

# Another version of it formats in another way.
CLANG_FORMAT = clang-format==23.1.5
$(VENV)/.lint: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[tools,test,lint]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(CLANG_FORMAT) || echo 'lint: no $(CLANG_FORMAT)'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/pyhostdev demo

# One more than there are processors, because many tests wait for a program or a deadline.
TEST_JOBS ?= $(shell echo $$(($$(nproc) + 1)))
test: $(VENV)/.test
	PYTEST_DEBUG_TEMPROOT=$(TEMPROOT) $(BIN)/python -m pytest -q -n $(TEST_JOBS)

# Tests may use what a module imports and what may be None: the test fails then, which is its purpose.
TEST_TYPES = --strict --implicit-reexport --no-warn-unused-ignores --disable-error-code union-attr

lint: $(VENV)/.lint
	$(BIN)/ruff check setup.py noxfile.py docs examples pyhostdev tests benchmarks csrc
	$(BIN)/ruff format -q --check setup.py noxfile.py docs examples pyhostdev tests benchmarks csrc
	@if test -x $(BIN)/clang-format; then $(BIN)/clang-format --dry-run --Werror csrc/*.c csrc/*.h; \
	else echo 'lint: the format of csrc is not checked: $(CLANG_FORMAT) could not be fetched'; fi
	$(BIN)/python docs/check_links.py
	$(MAKE) lint-types

lint-types: $(VENV)/.lint
	$(BIN)/mypy
	MYPYPATH=tests/support:tests/prototype $(BIN)/mypy $(TEST_TYPES) --explicit-package-bases --exclude 'tests/(lab|downstream/virtinst)' tests
	MYPYPATH=tests/support:tests/lab:tests/lab/in_guest:benchmarks:csrc $(BIN)/mypy $(TEST_TYPES) \
		$$(ls tests/lab/*.py tests/lab/in_guest/*.py | grep -v tests/lab/scale.py)
	MYPYPATH=benchmarks:csrc $(BIN)/mypy $(TEST_TYPES) benchmarks/*.py

# libvirt's own answers, where they lie beside the project; the cases that are ours are part of make test.
ORACLE ?= ../shared/oracle
oracle: $(VENV)/.test
	@if test -d $(ORACLE); then python3 $(ORACLE)/compare.py --server "$(BIN)/python tests/oracle_server.py {sysfs} {dev}" \
		$(ORACLE)/visible/generated $(ORACLE)/visible/libvirt; else echo "oracle: there are no answers in $(ORACLE)"; fi

# What a change does, as text and as one page: this tree against BASE, on testdata/oracle and the folders in CASES.
BASE ?= main
CASES ?=
NAMES ?= .
prototype: $(VENV)/.test
	$(BIN)/python tests/prototype/prototype.py --base $(BASE) --html build/prototype.html --names '$(NAMES)' $(CASES)

clean:
	rm -rf $(VENV) $(VENV)-* build dist share *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pyhostdev -name '*.so' -delete -o -name __pycache__ -prune -exec rm -rf {} +

-include Makefile.lab Makefile.bench Makefile.fuzz Makefile.package Makefile.quality Makefile.fleet
