# Everything installs into .venv; .ci/constraints.txt pins what is installed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-faults test-gpu lint bench install clean

install: .venv/installed

.venv/installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[test]'
	touch $@

demo: install
	mkdir -p demo
	$(BIN)/movq encode tests/data/city.mp4 -o demo/city.safetensors --force
	$(BIN)/movq info demo/city.safetensors

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4

# Minutes, with strace: faults at every system call, kills, files of strangers, fuzzing, promises broken to see their tests go red.
test-faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rP -m faults -n 2
	$(BIN)/python -m tests.inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.test_fuzz 120 $$(date +%s)
	$(BIN)/python -m tests.promises

test-gpu: install
	$(BIN)/python -m pytest -q -s -m gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/short.py

clean:
	rm -rf .venv demo build dist *.egg-info
