# Two commands do everything from a bare machine with Python >= 3.10, pip, make and g++:
#   make demo   sets up, trains a small tunable denoiser on photographs, writes runs/demo/
#   make test   sets up and runs the tests
PYTHON ?= python3
# A machine with a GPU takes the CUDA build: make TORCH=torch TRITON=
TORCH ?= torch==2.13.0
# e.g. PyTorch's own CPU index, where the default index serves CUDA builds only
TORCH_INDEX ?=
TRITON ?= $(if $(filter Linux,$(shell uname -s)),triton==3.7.1)

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: all setup test test-all demo lint format clean

all: test

setup: $(STAMP)

# torch first, so that the package finds it and pulls in no second one
$(STAMP): pyproject.toml setup.py Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel ninja pybind11
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(if $(TRITON),$(BIN)/python -m pip install -q "$(TRITON)")
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

test: setup
	$(BIN)/python -m pytest -q -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -q

demo: setup
	$(BIN)/tunable-ops demo --out runs/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info runs
