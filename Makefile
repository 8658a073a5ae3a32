# Two commands do everything from a bare machine with Python >= 3.10, pip, make and g++:
#   make demo   sets up, trains a small tunable denoiser on photographs, writes runs/demo/
#   make test   sets up and runs the tests
PYTHON ?= python3
# A machine with a GPU takes the CUDA build, which brings its own Triton: make TORCH=torch TRITON=
TORCH ?= torch==2.13.0
# PyTorch's CPU index, for machines whose default index has CUDA builds only
TORCH_INDEX ?=
TRITON ?= $(if $(filter Linux,$(shell uname -s)),triton==3.7.1)

BIN := .venv/bin
# What an installation is made of besides Python files, which are used where they lie
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.h csrc/*.cpp csrc/*.py csrc/cpu/*.h csrc/cpu/*.cpp csrc/cuda/*)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: all setup test test-all demo lint format clean

all: test

setup: .venv/.dev

# torch first, so that the package finds it and pulls in no second one
.venv/.torch:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip "setuptools>=77" wheel ninja pybind11
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(if $(TRITON),$(PIP) "$(TRITON)")
	touch $@

.venv/.train: .venv/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[train]"
	touch $@

# Not after .train: one installation compiles once, and brings what that one would
.venv/.dev: .venv/.torch $(SOURCES)
	$(PIP) --no-build-isolation --editable ".[dev]"
	touch .venv/.train $@

test: .venv/.dev
	$(BIN)/python -m pytest -q -m "not slow"

test-all: .venv/.dev
	$(BIN)/python -m pytest -q

demo: .venv/.train
	$(BIN)/tunable-ops demo --out runs/demo

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info runs tunable_ops/*.so
