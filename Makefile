# make demo | test | check | fast | setup
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo test fast check format mutants clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Holdfast needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[vision,classic]'
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[vision,classic,dev]'
	touch $@

demo: setup
	$(BIN)/holdfast demo

test: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

fast: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p holdfast.losses -p holdfast.stats -p holdfast.data -p holdfast.certificate

format: .venv/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: .venv/ready-dev
	$(BIN)/python tests/mutants.py

clean:
	rm -rf .venv runs build dist
