# The commands of the README. Each installs what it needs; what is built stays in build/ and .venv/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

FUZZ_SECONDS ?= 10
SOAK ?=
BENCH_FLAGS ?=
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(shell command -v ccache)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export PERDURE_CLI := $(CURDIR)/build/dev/cli/perdure
export PERDURE_CROSSING := $(CURDIR)/build/dev/tests/cpp/crossing
export PERDURE_KILLEE := $(CURDIR)/build/dev/tests/cpp/killee
export PERDURE_FAKE_DEVICE := $(CURDIR)/build/dev/tests/cpp/libfake_device.so

torch = $(firstword $(wildcard .venv/lib/python3*/site-packages/torch))
with_torch = -DPERDURE_WITH_TORCH=ON -DCMAKE_PREFIX_PATH=$(CURDIR)/$(torch)/share/cmake
sources = git ls-files -co --exclude-standard '*.cpp' '*.hpp'
banner = @printf '\n=== %s ===\n' "$(1)"

.PHONY: help demo test bench soak format setup setup-tests setup-soak setup-bench build wheel unit-tests python-tests \
	sanitizer-tests thread-tests fuzz-tests install-test format-check clean

help:  ## Says what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

demo: setup build wheel  ## Trains a small GPT, kills it again and again, proves that nothing was lost
	.venv/bin/python examples/demo.py --cpp build/dev/examples/cpp/train_gpt --cpp-sample build/dev/examples/cpp/sample_gpt

test: setup-tests format-check build unit-tests wheel python-tests sanitizer-tests thread-tests fuzz-tests install-test  ## Runs every test
	$(call banner,all tests passed)

bench: setup-bench wheel  ## Prints the benchmark tables (BENCH_FLAGS="--help" says what can be set)
	$(call banner,benchmarks)
	.venv/bin/python -m pip install -q -r bench/requirements.txt -c <(.venv/bin/python -m pip freeze | grep '^torch==')
	.venv/bin/python bench/run.py $(BENCH_FLAGS)

soak: setup-soak build wheel fuzzers  ## The long versions of the tests, for hours (SOAK="states kills": these alone)
	scripts/soak $(SOAK)

format: setup-tests  ## Formats the C++ sources
	$(sources) | xargs clang-format-19 -i

setup:
	@scripts/setup

setup-tests:
	@scripts/setup --tests

setup-soak:
	@scripts/setup --soak

setup-bench:
	@scripts/setup --bench

build:
	$(call banner,build)
	cmake --preset dev -DPERDURE_BUILD_TESTS=$(if $(filter demo,$(MAKECMDGOALS)),OFF,ON) -DPERDURE_BUILD_EXAMPLES=ON $(with_torch)
	cmake --build --preset dev

wheel:
	$(call banner,python package)
	.venv/bin/python -m pip install -q --no-build-isolation --no-deps --force-reinstall --config-settings=build-dir=build/wheel .

unit-tests:
	$(call banner,C++ tests)
	ctest --preset dev -j2

# Beside each other: each of the two needs little more than one core.
python-tests:
	$(call banner,Python tests)
	scripts/test-as-user > build/test-as-user.log 2>&1 & user=$$!; \
	.venv/bin/python -m pytest -q && root=0 || root=$$?; \
	wait $$user && user=0 || user=$$?; \
	printf '\n=== C++ and Python tests as an ordinary user ===\n'; cat build/test-as-user.log; exit $$((root + user))

sanitizer-tests:
	$(call banner,C++ tests under ASan and UBSan)
	cmake --preset asan $(with_torch)
	cmake --build --preset asan
	ctest --preset asan -j2
	PERDURE_CLI=$(CURDIR)/build/asan/cli/perdure .venv/bin/python -m pytest -q tests/python/test_cli.py \
		tests/python/test_hostile.py tests/python/test_hostile_formats.py \
		tests/python/test_hostile_run.py -k 'command or (test_cli and not starts_quickly)'

thread-tests:
	$(call banner,C++ tests under TSan)
	cmake --preset tsan -DPERDURE_BUILD_CLI=OFF
	cmake --build --preset tsan --target storage_test engine_test
	ctest --preset tsan -j2 -E '_NOT_BUILT$$'

fuzzers:
	cmake --preset fuzz
	cmake --build --preset fuzz

fuzz-tests: fuzzers
	$(call banner,fuzz targets: $(FUZZ_SECONDS) s each)
	scripts/fuzz "$(FUZZ_SECONDS)"

install-test:
	$(call banner,installed package)
	scripts/test-install build/dev "$(CURDIR)/$(torch)/share/cmake"

format-check:
	$(call banner,format)
	$(sources) | xargs clang-format-19 --dry-run --Werror

clean:  ## Removes what was built, keeps .venv
	rm -rf build
