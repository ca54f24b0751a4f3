# Everything installs into .venv; .ci/constraints.txt pins what is installed.
# TORCH_INDEX is the index that torch comes from, if not PyPI: TORCH_INDEX=https://download.pytorch.org/whl/cpu make test
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
# One process more than there are cores, as tests wait for processes too.
PARALLEL := -n $(shell expr $$(nproc || echo 1) + 1) --maxprocesses 4 --dist loadfile
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: demo test test-slow test-all test-faults test-gpu lint docs bench install clean

install: .venv/installed

.venv/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) -e .
	touch $@

.venv/test-installed: .venv/installed
	$(PIP) -e '.[test]'
	touch $@

demo: .venv/installed
	mkdir -p demo
	$(BIN)/movq encode tests/data/city.mp4 -o demo/city.safetensors --force
	$(BIN)/movq info demo/city.safetensors

test: .venv/test-installed lint
	$(PYTEST) $(PARALLEL)

# What is about processes, or takes seconds: kills, workers that die, Ray, the README's batches, fuzzing.
test-slow: .venv/test-installed
	$(PYTEST) -n auto --maxprocesses 4 --dist loadfile -m 'slow and not faults and not gpu'

test-all: test test-slow

# Minutes, with strace: faults at every system call, kills, files of strangers, fuzzing, promises broken to see their tests go red.
test-faults: .venv/test-installed
	$(PYTEST) -rP -m faults -n 2
	$(BIN)/python -m tests.faults.inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.test_fuzz 120 $$(date +%s)
	$(BIN)/python -m tests.faults.promises

test-gpu: .venv/test-installed
	$(BIN)/python -m pytest -q -s -m gpu

lint: .venv/test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/typos

docs: .venv/test-installed
	$(BIN)/python -m tests.helpers.docs > docs/cli.md

bench: .venv/test-installed
	$(BIN)/python benchmarks/short.py

clean:
	rm -rf .venv demo build dist *.egg-info
