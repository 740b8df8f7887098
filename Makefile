# make test    on a fresh clone: a virtual environment, torch, the library, all tests
# make help    the other targets
VENV ?= .venv
PYTHON ?= python3
# The default index may hand out a build with CUDA, 2 GB large; PIP="pip install --extra-index-url ..." names another.
TORCH ?= torch==2.13.0
PIP ?= pip install
JOBS ?= $(shell nproc)
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml
CXX_SOURCES := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# One test process a core, one thread each; tests of threads ask for more themselves, and waiting ones sleep.
PYTEST = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -q -n $(JOBS) --dist worksteal

.PHONY: help venv build test demo lint bench asan emulated devmodel changed-kernels mutants gate clean
help:
	@echo "venv build test demo lint bench asan emulated devmodel mutants gate clean"

# torch first, and by version: whatever else is installed afterwards must not choose one.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) -q "$(TORCH)"
	touch $@

$(VENV)/.tools: $(VENV)/.torch pyproject.toml
	$(BIN)/$(PIP) -q "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.20" ninja "$(TORCH)"
	touch $@

# Editable: Python files are used from here; a changed source of C++ makes `make` build again.
$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	  $(BIN)/$(PIP) -q --no-build-isolation -e ".[test,transformers]" "$(TORCH)"
	touch $@

$(VENV)/.dev: $(VENV)/.built
	$(BIN)/$(PIP) -q --no-build-isolation -e ".[dev]" "$(TORCH)"
	touch $@

venv: $(VENV)/.tools
build: $(VENV)/.built

test: build
	$(PYTEST) tests $(ARGS)

demo: build
	$(BIN)/sparsekern demo $(ARGS)

bench: build
	$(BIN)/sparsekern bench $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

# CUDA kernels on a CPU model of the device: needs nvcc, and no GPU.
devmodel: build
	@command -v nvcc > /dev/null || [ -x "$$CUDA_HOME/bin/nvcc" ] || \
	  { echo "devmodel: skipped, for there is no nvcc on the path or in CUDA_HOME"; exit 0; }; \
	$(PYTEST) tests/devmodel -m "devmodel or not devmodel" $(ARGS)

changed-kernels:
	@echo "test_defects or test_compiles or (test_ops and ($$($(BIN)/python -m tests.devmodel.changed)))"

# What the tests would notice: synchronisations of CUDA kernels left out one at a time; build/devmodel/report.json.
mutants: build
	$(BIN)/python -m tests.devmodel.mutation $(ARGS)

# What ptxas makes of the CUDA kernels beside what is checked in; ARGS=--update checks it in.
gate: build
	@command -v nvcc > /dev/null || [ -x "$$CUDA_HOME/bin/nvcc" ] || \
	  { echo "gate: skipped, for there is no nvcc on the path or in CUDA_HOME"; exit 0; }; \
	$(BIN)/python -m tests.static_gate $(ARGS)

# AddressSanitizer and UBSan: the library is built with them and put into the tests' way; torch is not. A process
# that starts without the venv's start-up files sees this copy of the package, not the editable one.
ASAN := build/asan
SITE = $(shell $(BIN)/python -c "import site; print(site.getsitepackages()[0])")
BASE = $(shell $(BIN)/python -c "import os, sys; print(os.path.realpath(sys.executable))")
RUNTIME = $(shell for l in libasan.so libubsan.so libstdc++.so.6; do $(CXX) -print-file-name=$$l; done | paste -sd:)
asan: build
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset asan -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build $(ASAN) -j $(JOBS)
	rm -rf $(ASAN)/package && mkdir -p $(ASAN)/package && cp -r sparsekern $(ASAN)/package/
	rm -f $(ASAN)/package/sparsekern/_C*.so && cp $(ASAN)/_C*.so $(ASAN)/package/sparsekern/
	cd $(ASAN)/package && LD_PRELOAD=$(RUNTIME) PYTHONPATH=$(abspath $(ASAN)/package):$(SITE) \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  SPARSEKERN_BUILD_DIR=$(abspath $(ASAN)) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
	  $(BASE) -m pytest -q -n $(JOBS) --dist worksteal -p no:cacheprovider $(ASAN_TESTS)

# Memory is what the sanitizers watch: every op on every size and instruction set, inside and outside its tensors,
# and every way to call it wrongly.
ASAN_TESTS = $(abspath tests/test_ops.py) $(abspath tests/test_errors.py) \
  -k "reference or stays_inside or out or strided or wrong or packed or wild or python_threads"

# The AVX-512 kernels on a processor without AVX-512: compiled against tests/emulation, to the bit and slow.
EMULATED := build/emulated
EMULATED_TESTS ?= tests/test_ops.py
emulated: build
	PATH="$(abspath $(BIN)):$$PATH" cmake --preset emulated -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build $(EMULATED) -j $(JOBS)
	rm -rf $(EMULATED)/package && mkdir -p $(EMULATED)/package && cp -r sparsekern bench tests $(EMULATED)/package/
	rm -f $(EMULATED)/package/sparsekern/_C*.so && cp $(EMULATED)/_C*.so $(EMULATED)/package/sparsekern/
	cd $(EMULATED)/package && PYTHONPATH=$(abspath $(EMULATED)/package):$(SITE) \
	  SPARSEKERN_BUILD_DIR=$(abspath $(EMULATED)) OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
	  $(BASE) -m pytest -q -n $(JOBS) --dist worksteal -p no:cacheprovider $(EMULATED_TESTS)

clean:
	rm -rf build $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
