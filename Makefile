# Everything a newcomer or the CI does. `make demo` and `make test` need only Python 3.11+ and PyPI.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST ?= .venv-lowest
PARALLEL := --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: demo test check lint format parity slow sanitizers gpu fuzz lowest bench clean

demo: $(VENV)/.installed  ## complete photographs with the bundled model and write demo.png
	$(BIN)/imagegpt complete examples/photos/*.png --model cifar10 --keep 0.5 --num 8 --seed 0 --out demo.png --force

test: $(VENV)/.installed-dev  ## the tests that need no network, no GPU and only minutes
	$(BIN)/python -m pytest $(PARALLEL)

check: lint test  ## what CI runs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md docs src tests benchmarks examples scripts

format: $(VENV)/.installed-dev  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(VENV)/.installed-dev  ## every comparison with transformers' ImageGPT, slow ones included
	$(BIN)/python -m pytest -m parity

slow: $(VENV)/.installed-dev  ## real training, whole models, exports
	$(BIN)/python -m pytest -m "slow and not gpu"

sanitizers: $(VENV)/.installed-dev  ## the C++ kernels under the address and undefined-behaviour sanitizers
	$(BIN)/python -m pytest -m slow tests/kernels/test_sanitizers.py

gpu: $(VENV)/.installed-dev  ## needs a CUDA device
	$(BIN)/python -m pytest -m gpu

fuzz: $(VENV)/.installed-dev  ## damaged files and odd command lines, some minutes; more with FUZZ="--hours 2", see tests/fuzz
	$(BIN)/python -m tests.fuzz $(FUZZ)

lowest: $(LOWEST)/.installed  ## the tests with the lowest versions that pyproject.toml declares, torch excepted
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

bench: $(VENV)/.installed-dev  ## every benchmark, beside transformers; about three quarters of an hour on two cores
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/encode_dataset.py
	$(BIN)/python benchmarks/read_bundle.py
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/sampling.py --parallel
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/busy_machine.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(LOWEST) demo.png .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing imagegpt and what it needs into $(VENV) (once, a minute or two)"
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing imagegpt and its tests' tools into $(VENV) (once, a few minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed

# From scratch every time: pip would leave what is newer and allowed. It fails where a declared bound cannot be reached.
$(LOWEST)/.installed: pyproject.toml scripts/lowest_versions.py
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python scripts/lowest_versions.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -e '.[dev]' --constraint $(LOWEST)/lowest.txt
	@touch $@
