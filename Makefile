# make demo: set everything up and run the main job.   make test: set up and pass the tests.
# make notebooks: the tutorials as .ipynb files in runs/tutorials.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test test-long lint bench notebooks clean help

help:
	@echo "make demo | test | test-long | lint | bench | notebooks | clean"

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[report]"
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/jaxinterp patch --model smollm2-135m-instruct --task ioi --site resid_pre z --n 32 --out runs/ioi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: export OPENBLAS_NUM_THREADS = 1  # the workers share the cores; its threads would spin
test: lint
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m long --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/sweeps.py

notebooks: $(VENV)/.dev
	mkdir -p runs/tutorials
	for each in docs/tutorials/*.py; do \
		$(BIN)/jupytext --to ipynb $$each --output runs/tutorials/$$(basename $$each .py).ipynb || exit 1; \
	done

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
