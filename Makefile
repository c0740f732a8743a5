PYTHON ?= .venv/bin/python
.DEFAULT_GOAL := help

help:  ## print the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## a virtual environment with everything a developer needs
	python3 -m venv .venv
	.venv/bin/pip install -q -c versions.txt -e ".[dev]"
	.venv/bin/pre-commit install

check:  ## ruff, the type checker, the import contract
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

test:  ## the default tests, at most 8 minutes on 2 cores
	$(PYTHON) -m pytest -q

test-slow:  ## the tests that take minutes: kills, long runs
	$(PYTHON) -m pytest -q -m slow

test-kernels:  ## the kernels of the output head in Triton's interpreter and a CUDA device's operations, without a GPU; PYTHON=...
	$(PYTHON) -c "import triton"
	$(PYTHON) -m pytest -q -n 0 tests/scoring/test_kernels.py tests/scoring/test_cuda_road.py

bench:  ## against TRL and itself, under 40 minutes on a quiet machine; ARGS="--full", "--smoke", "--only CELL"
	$(PYTHON) tools/bench_run.py $(ARGS)

bench-gpu:  ## against TRL on one GPU, in at most 8 minutes; ARGS="--dry_run" for a CPU, "--only CELL", "--list"
	$(PYTHON) tools/bench_gpu.py $(ARGS)

docs:  ## write the generated pages: objectives, methods, from_trl, claims, formats, metrics, one_pair, performance, README's commands and tree, and __init__.pyi
	$(PYTHON) tools/write_objectives.py
	$(PYTHON) tools/write_methods.py
	$(PYTHON) tools/write_from_trl.py
	$(PYTHON) tools/write_formats.py
	$(PYTHON) tools/write_metrics.py
	$(PYTHON) tools/write_one_pair.py
	$(PYTHON) tools/write_claims.py
	$(PYTHON) tools/write_readme.py
	$(PYTHON) tools/write_stub.py
	$(PYTHON) tools/write_performance.py

.PHONY: help setup check test test-slow test-kernels bench bench-gpu docs
