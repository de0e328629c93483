# One environment (.venv), made from pyproject.toml with the lock's versions. Every target
# makes what it needs; `make help` lists them.
PORT ?= 8000
JOBS ?= 2
GPU_JOBS ?= 0
BIN := .venv/bin
SITE := _build/html
export PYTHON TORCH_INDEX
BUILD := $(BIN)/jupyter-book build . --path-output . -q
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=300

.DEFAULT_GOAL := help
.PHONY: help book html site test suite quick short check test-gpu notebooks labs pdf lighthouse lock clean env

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

env: .venv/installed
.venv/installed: pyproject.toml requirements.lock scripts/setup.sh
	@scripts/setup.sh

book: env  ## build the book and serve it on 127.0.0.1 (PORT=8000)
	@$(BUILD)
	@$(BIN)/python scripts/serve.py $(SITE) --port $(PORT)

html: env  ## build the book into _build/html; a warning fails
	@$(BUILD) -W --keep-going
	@echo "built $(SITE)/index.html"

# The tests' build starts clean: a page with a warning passes on an incremental one.
site: env
	@rm -rf $(SITE) _build/.doctrees _build/jupyter_execute
	@$(BUILD) -W --keep-going

check: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

test: env  ## everything that needs no GPU: lint, types, engine, labs, notebooks, site
	@scripts/tools.sh
	@$(MAKE) --no-print-directory -j 2 check suite

suite: env
	@CLEAN_SITE=1 $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests

quick: env  ## lint, types, the short tests of the engine and one lab, in three minutes
	@$(MAKE) --no-print-directory -j 2 check short

short: env
	@$(BIN)/pytest -n $(JOBS) --dist loadfile -m "not long" tests/engine tests/labs/test_batching.py

# GPU_JOBS=6 runs six tests at a time, for a GPU of 80 GB and more. Then, one by one, come
# those that take all of its memory, the notebooks among them.
test-gpu: env  ## the GPU tests and every notebook, on a GPU; nothing skips (GPU_JOBS=0)
	@scripts/gpu_tools.sh
	@$(BIN)/pytest --require-gpu -m "gpu and not whole_gpu" -n $(GPU_JOBS) --dist worksteal tests
	@$(BIN)/pytest --require-gpu -m "whole_gpu or notebook" $(NBVAL) tests notebooks

notebooks: env  ## run the notebooks again and keep their outputs
	@$(BIN)/python scripts/run_notebooks.py

labs: env  ## make the labs' starters again from their masters
	@$(BIN)/labkit build $(patsubst %/lab.toml,%,$(wildcard labs/*/lab.toml))

pdf: env  ## the whole book as one PDF
	@$(BUILD)
	@$(BIN)/python scripts/chromium.py --install >/dev/null
	@$(BIN)/python scripts/make_pdf.py

lighthouse: env  ## Lighthouse over the home page and a chapter (needs node)
	@$(BUILD)
	@scripts/lighthouse.sh

lock: env  ## resolve requirements.lock again, with the pins of scripts/pins.txt
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	    --constraint scripts/pins.txt --no-header --no-annotate --quiet --output-file requirements.lock
	@echo "wrote requirements.lock"

clean:  ## remove what was built, keep .venv
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
