# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
.DEFAULT_GOAL := build
BUILD ?= build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
# A second g++ of LibTorch's headers takes 0.6 GB; four gigabytes a job never swap.
export OMP_WAIT_POLICY ?= passive

.PHONY: help build demo test test-peers fuzz mutate mutants check format bench asan gpu-check install dist clean distclean setup-build setup-test setup-peers configure

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup-build:
	@cmake/setup.sh build
setup-test:
	@cmake/setup.sh test
setup-peers:
	@cmake/setup.sh peers

configure:
	@cmake -S . -B $(BUILD) -G Ninja -DGRAFT_TESTS=$(TESTS) $(CMAKE_ARGS) > $(BUILD).configure.log 2>&1 \
	  || { tail -n 15 $(BUILD).configure.log; exit 2; }
	@mkdir -p $(BUILD) && mv $(BUILD).configure.log $(BUILD)/configure.log

build: setup-build ## install what is missing and build build/bin/graft
	@$(MAKE) --no-print-directory configure TESTS=$(shell test -f $(BUILD)/CMakeCache.txt && grep -q GRAFT_TESTS:BOOL=ON $(BUILD)/CMakeCache.txt && echo ON || echo OFF)
	@cmake --build $(BUILD) -j $(JOBS)

demo: build ## the whole way on real input: raw instructions to a proven adapter
	@examples/quickstart/demo.sh $(BUILD)/bin/graft

test: setup-test ## build everything and run the tests
	@$(MAKE) --no-print-directory configure TESTS=ON
	@cmake --build $(BUILD) -j $(JOBS)
	@ctest --test-dir $(BUILD) -j $(JOBS) --output-on-failure --no-tests=error $(CTEST_ARGS) \
	  | tee $(BUILD)/ctest.log | grep -vE '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test .* Passed)'; \
	  exit $${PIPESTATUS[0]}

test-peers: setup-peers build ## compare graft with the reference implementations
	@.deps/peers/bin/python tests/peers/run.py $(BUILD)/bin/graft

fuzz: ## look for inputs that break the parsers (SECONDS=120 for each; needs clang)
	@tests/fuzz/fuzz.sh $(or $(SECONDS),120)

mutate: setup-test ## apply one-line mutations that the tests must notice (ONLY=text of a title)
	@python3 tests/mutants/run.py $(ONLY)

check: ## format, layer rules, clang-tidy on changed files
	@cmake/check.sh $(BUILD)

format: ## format every source file
	@git ls-files '*.h' '*.cpp' '*.cu' | xargs clang-format -i

bench: build ## speed of kernels, data and training on this machine
	@$(BUILD)/bin/graft-bench

mutants: setup-test ## plant faults in the CUDA kernels: each must be found (6 minutes)
	@$(MAKE) --no-print-directory configure TESTS=ON
	@cmake --build $(BUILD) -j $(JOBS) --target graft-kernel-check
	@JOBS=$(JOBS) cmake/mutants.sh $(BUILD)

asan: setup-test ## the kernels' tests under AddressSanitizer and UBSan, in build-asan (an hour)
	@$(MAKE) --no-print-directory configure BUILD=build-asan TESTS=ON \
	  CMAKE_ARGS="-DGRAFT_SANITIZE=address,undefined -DGRAFT_TORCH=OFF -DGRAFT_CUDA=off"
	@cmake --build build-asan -j $(JOBS) --target test_kernels test_kernel_cases
	@ctest --test-dir build-asan -j $(JOBS) --output-on-failure --no-tests=error \
	  -R '^(kernels|kernel_cases)/' -E '^kernels/(mutants|gpu_check)$$'

gpu-check: setup-test ## on a GPU: results, compute-sanitizer, speed (needs no toolchain from the bundle)
	@$(MAKE) --no-print-directory configure TESTS=ON
	@cmake --build $(BUILD) -j $(JOBS) --target graft-kernel-check test_gpu $$(grep -q GRAFT_NVCC:FILEPATH=/ $(BUILD)/CMakeCache.txt && echo graft_cuda)
	@GRAFT_BUILD=$(BUILD) tests/kernels/gpu_check.sh

install: build ## copy programs to PREFIX (default /usr/local)
	@cmake --install $(BUILD) --prefix $(PREFIX)

dist: build ## a relocatable bundle of at most 32 MiB in dist/ (SHARED=1 adds test data)
	@cmake/dist.sh $(BUILD)

clean: ## remove what was built
	@rm -rf $(BUILD) out

distclean: clean ## remove what was downloaded as well
	@rm -rf .deps dist

SHELL := /bin/bash
