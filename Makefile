# Two commands do everything from a bare machine with Python >= 3.10, pip, make and g++:
#   make demo   sets up, trains a small tunable denoiser on photographs, writes runs/demo/
#   make test   sets up and runs the tests
PYTHON ?= python3
# A machine with a GPU takes the CUDA build, which brings its own Triton: make TORCH=torch TRITON=
TORCH ?= $(shell sed -n 's/^\(torch==[^;]*\).*/\1/p' constraints.txt)
# PyTorch's CPU index, for machines whose default index has CUDA builds only
TORCH_INDEX ?=
TRITON ?= $(if $(filter Linux,$(shell uname -s)),$(shell sed -n 's/^\(triton==[^;]*\).*/\1/p' constraints.txt))

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

CONSTRAINTS := --constraint .venv/constraints.txt

CSRC := $(shell find csrc -type f)
FORMATTED := $(shell find csrc examples -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: all setup test test-all rehearsal sanitize portable demo docs wheel sdist lint format clean

all: test

setup: .venv/.dev .venv/.ops

# torch first, so that the package finds it and pulls in no second one
.venv/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	grep -v -E '^(torch|triton)==' constraints.txt >.venv/constraints.txt
	$(PIP) --upgrade pip
	$(PIP) $(CONSTRAINTS) "setuptools>=77" wheel ninja pybind11
	$(PIP) $(CONSTRAINTS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(if $(TRITON),$(PIP) "$(TRITON)")
	touch $@

# without the operators, which pip would build from nothing each time: they have a step of their own, which keeps objects
.venv/.train: .venv/.torch pyproject.toml
	TUNABLE_OPS_CPP=0 TUNABLE_OPS_CUDA=0 $(PIP) $(CONSTRAINTS) --no-build-isolation --editable ".[train]"
	touch $@

# what the extra asks for, beside the package that is there
.venv/.dev: .venv/.train
	$(PIP) $(CONSTRAINTS) "tunable-ops[dev]"
	touch $@

# a process per core, each with one thread (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal
# Triton decides for its interpreter when it is imported: a process of its own
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) \
	$(addprefix tests/triton_kernels/test_,kernels.py conv2d.py operator.py autotune.py shortcuts.py tunable_parameters.py)

.venv/.ops: .venv/.train setup.py $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

test: .venv/.dev .venv/.ops
	$(PYTEST) -m "not slow"
	$(INTERPRETED) -m "not slow"

test-all: .venv/.dev .venv/.ops
	$(PYTEST)
	$(INTERPRETED)

# what bench/on_gpu.sh does on a machine with a GPU, on this one: some ten minutes
rehearsal: .venv/.dev
	PYTHON=$(abspath $(BIN)/python) bench/on_gpu.sh runs/rehearsal/first first --stand-in
	PYTHON=$(abspath $(BIN)/python) bench/on_gpu.sh runs/rehearsal/second second --stand-in

demo: .venv/.train .venv/.ops
	$(BIN)/tunable-ops demo --out runs/demo

# The pages that are made of the code, and the site in build/site: pages that ask no other host for anything.
docs: .venv/.dev
	$(BIN)/python -m tunable_ops.train.keys >docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python docs/_site/check.py build/site
	@echo build/site/index.html

# The C++ operators under AddressSanitizer and UBSan, in a package of their own, with random calls: a few minutes.
# The leaks of an interpreter that ends are no findings; libstdc++ must be there before the sanitizer looks for it.
SANITIZED := LD_PRELOAD="$$($(or $(CXX),g++) -print-file-name=libasan.so) $$($(or $(CXX),g++) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONSAFEPATH=1 PYTHONPATH=build/sanitize:.
FUZZ_SECONDS ?= 120
SEED ?= 0

sanitize: .venv/.dev
	TUNABLE_OPS_SANITIZE=1 TUNABLE_OPS_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib build/sanitize \
		--build-temp build/sanitize-objects
	$(SANITIZED) $(BIN)/python tests/csrc/fuzz.py --seconds $(FUZZ_SECONDS) --seed $(SEED)

# The tests of the C++ convolutions with the kernels for machines without AVX, in a package of their own.
portable: .venv/.dev
	TUNABLE_OPS_PORTABLE=1 TUNABLE_OPS_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib build/portable \
		--build-temp build/portable-objects
	PYTHONSAFEPATH=1 PYTHONPATH=build/portable:. $(PYTEST) -m "not slow" \
		tests/ops/test_winograd.py tests/ops/test_tunable_conv2d_cpp.py tests/ops/test_tunable_parameters.py

# build/lib is what the last build left; modules that were deleted since would be packed again
wheel: .venv/.torch
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .

sdist: .venv/.torch
	$(BIN)/python setup.py --quiet sdist

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

clean:
	rm -rf .venv build dist *.egg-info runs
	rm -rf tunable_ops/lib tunable_ops/_C.* tunable_ops/_ops_cpu.* tunable_ops/_ops_cuda.* tunable_ops/_ops_wgmma.* \
		tunable_ops/_launcher.* \
		tunable_ops/*_left_out.txt
