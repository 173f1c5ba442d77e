# Every target sets up what it needs: a virtual environment in the checkout with the pinned versions.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
PYTEST_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-slow lint bench

demo: .venv/.installed
	@$(BIN)/python docs/demo.py --out demo

test: .venv/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS)

# No slow test at all (exit status 5) is not a failure.
test-slow: .venv/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not gpu" $(PYTEST_ARGS) || test $$? -eq 5

lint: .venv/.installed
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy chem generative evaluation checkpoints atomsmith.py

bench: .venv/.installed
	@$(BIN)/python -m benchmarks

# torch goes first and pinned, so that nothing that depends on it can choose another build.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "atomsmith needs Python 3.11 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e .[dev,train,plot,report,stability,campaign]
	@touch $@
