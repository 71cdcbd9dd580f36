# SPDX-License-Identifier: GPL-2.0-only
#
#   make setup       install what a build needs (apt-get where it exists, a virtual environment
#                    .venv) and build; after it no network is needed
#   make demo        trace real packets through a small network made for it (root)
#   make build       build the wheel and install it into .venv
#   make setup-test  install what all tests need, QEMU included
#   make test        run every test this machine can run, say which it could not
#   make test-unit test-object test-native test-vm [KERNEL=6.1]
#   make check       lint, format, types, Python 3.7 language level
#   make format      let the formatter have its way
#   make bench       what the tools cost (BENCH="start --rounds 5"), into docs/performance.md
#   make wheel       a reproducible wheel in build/dist
#   make rpm         RPM packages in build/rpm/RPMS, from source
#   make clean       remove what was built; distclean: .venv, too

VENV := .venv
PYTHON := $(VENV)/bin/python
KERNEL :=
DIST := build/dist
TESTFLAGS :=
BENCH :=

.PHONY: setup setup-test build demo test test-unit test-object test-native test-vm check format \
	bench wheel rpm clean distclean

setup:
	build-aux/setup.sh packages build
	$(MAKE) --no-print-directory build

setup-test:
	build-aux/setup.sh packages test
	$(MAKE) --no-print-directory build $(VENV)/test.stamp

# Python requirements follow pyproject.toml; a look at unchanged ones needs no network.
$(VENV)/%.stamp: pyproject.toml build-aux/setup.sh build-aux/requirements.py
	build-aux/setup.sh python $*
	@touch $@

build: $(VENV)/build.stamp
	@$(PYTHON) build-aux/build_wheel.py build/meson build/wheel
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
		--force-reinstall build/wheel/*.whl

demo: build
	$(PYTHON) tests/lab/demo.py

test: build $(VENV)/test.stamp
	@$(PYTHON) tests/run.py $(TESTFLAGS)

test-unit test-object test-native: test-%: build $(VENV)/test.stamp
	@$(PYTHON) tests/run.py $*

test-vm: build $(VENV)/test.stamp
	@$(PYTHON) tests/run.py vm $(if $(KERNEL),--kernel $(KERNEL))

check: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/vermin --no-tips --violations -t=3.7- src

format: $(VENV)/test.stamp
	$(VENV)/bin/ruff check --fix-only --select I .
	$(VENV)/bin/ruff format .

bench: build $(VENV)/test.stamp
	$(PYTHON) tests/bench/run.py $(BENCH)

wheel rpm: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

wheel: $(VENV)/build.stamp
	@rm -rf build/meson-release
	@sha256sum "$$($(PYTHON) build-aux/build_wheel.py build/meson-release $(DIST))"

rpm: $(VENV)/test.stamp
	$(PYTHON) build-aux/build_rpm.py build/rpm

clean:
	rm -rf build

distclean: clean
	rm -rf $(VENV)
