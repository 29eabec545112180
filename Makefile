# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11; the rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup setup-dev setup-bench demo test lint bench docs nano clean

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev
setup-bench: $(VENV)/.setup-bench

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("udever needs Python 3.11 or newer; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half a venv would count as one the next time

$(VENV)/.setup: $(BIN)/python pyproject.toml constraints.txt hatch_build.py $(wildcard src/udever/model/kernels/*.[ch])
	$(INSTALL) --editable '.[server,eval]'
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.setup-bench: $(VENV)/.setup-dev
	$(INSTALL) --editable '.[dev,bench]'
	@touch $@

demo: setup
	@$(BIN)/udever demo

test: setup-dev  # a process a core; tests of a file share its servers, so they stay together; the slow files begin
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-bench
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/bulk.py
	$(BIN)/python benchmarks/scale.py

docs: setup-dev  # run every command shown in docs/cli.md again, and redraw the pictures (needs chromium)
	$(BIN)/python docs/refresh.py
	$(BIN)/python docs/screenshots.py

nano: setup-dev  # train the built-in models again: make nano DATA=… WORK=… (recipes/nano/README.md)
	@$(MAKE) --no-print-directory --directory recipes/nano BIN=$(abspath $(BIN)) DATA=$(abspath $(DATA)) WORK=$(abspath $(WORK))

clean:
	rm -rf $(VENV) build dist
